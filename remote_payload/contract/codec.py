"""Reading and writing the shapes. What comes from a box is untrusted: types are checked, sizes and paths too."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import types
import typing
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from remote_payload.contract.names import (
    CHUNK_SIZE,
    CONTRACT,
    LARGEST_FLOAT,
    LARGEST_INTEGER,
    MAX_FILE_SIZE,
    MAX_FILES,
    MAX_JSON_BYTES,
)


class ContractError(ValueError):
    """A file of the contract is malformed, too large, of a newer contract, or names a path outside its root."""


_T = TypeVar("_T")
HALF = re.compile("[\ud800-\udfff]")  # of a character: JSON may name it, no encoding has it


def dump(value: Any) -> str:
    """`value` (a dataclass of the contract) as one line of JSON."""
    return json.dumps(dataclasses.asdict(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def load(kind: type[_T], text: str | bytes) -> _T:
    """Parse `text` as `kind`. Unknown keys are ignored, since a newer box may add some; else ContractError."""
    if len(text) > MAX_JSON_BYTES:
        raise ContractError(f"{kind.__name__}: {len(text)} bytes is over the limit of {MAX_JSON_BYTES}")
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{kind.__name__}: not JSON ({error})") from error
    value: _T = _build(kind, raw, kind.__name__)
    spoken = getattr(value, "contract", CONTRACT)
    if spoken > CONTRACT:
        raise ContractError(f"{kind.__name__}: contract {spoken} is newer than {CONTRACT}; update homeport")
    return value


def _no_constant(name: str) -> float:
    """JSON has no NaN and no infinity, though Python's parser takes them; a limit compared with NaN limits nothing."""
    raise ValueError(f"{name} is not a number")


def _build(kind: Any, raw: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if raw is None:
            return None
        (inner,) = [a for a in typing.get_args(kind) if a is not type(None)]
        return _build(inner, raw, where)
    if origin is list:
        (inner,) = typing.get_args(kind)
        longest = MAX_FILES if dataclasses.is_dataclass(inner) else MAX_FILE_SIZE // CHUNK_SIZE
        if not isinstance(raw, list) or len(raw) > longest:
            raise ContractError(f"{where}: expected a list of at most {longest}")
        return [_build(inner, item, f"{where}[{i}]") for i, item in enumerate(raw)]
    if origin is dict:
        if not isinstance(raw, dict) or len(raw) > MAX_FILES:
            raise ContractError(f"{where}: expected an object")
        _, inner = typing.get_args(kind)
        return {_build(str, k, where): _build(inner, v, f"{where}.{k}") for k, v in raw.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, dict):
            raise ContractError(f"{where}: expected an object")
        hints = _hints(typing.cast(Any, kind))
        values = {}
        for f in dataclasses.fields(kind):
            if f.name in raw:
                values[f.name] = _build(hints[f.name], raw[f.name], f"{where}.{f.name}")
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ContractError(f"{where}.{f.name}: missing")
        return typing.cast(typing.Callable[..., Any], kind)(**values)
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        if not abs(raw) < LARGEST_FLOAT:  # 1e400 reads as infinity, which no JSON of ours may hold
            raise ContractError(f"{where}: beyond all measure")
        return float(raw)
    if isinstance(kind, type) and issubclass(kind, StrEnum | IntEnum):
        try:
            return kind(raw)
        except ValueError as error:
            raise ContractError(f"{where}: {raw!r} is not one of {[str(m) for m in kind]}") from error
    if isinstance(kind, type) and type(raw) is kind:
        if isinstance(raw, int) and not abs(raw) <= LARGEST_INTEGER:
            raise ContractError(f"{where}: beyond all measure")
        if isinstance(raw, str) and HALF.search(raw):
            raise ContractError(f"{where}: half a character")
        return raw
    raise ContractError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(raw).__name__}")


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    """Evaluating them takes longer than building an object, and a list may have thousands."""
    return typing.get_type_hints(kind)


def checked_path(path: str) -> PurePosixPath:
    """`path` as a relative POSIX path that stays inside its root; raises ContractError otherwise.

    Refuses absolute paths, '..', backslashes, drive letters, control characters and components over 255 bytes.
    """
    pure = PurePosixPath(path)
    bad = (
        not path
        or pure.is_absolute()
        or any(c in path for c in '\\:*?"<>|')
        or any(ord(c) < 32 or ord(c) == 127 for c in path)
        or HALF.search(path)  # no file system takes it
        or any(part in ("..", ".") or len(part.encode()) > 255 for part in path.split("/"))
        or len(path) > 1024
    )
    if bad:
        raise ContractError(f"path {path!r} is not a plain relative path")
    return pure


UNFINISHED = ".*.tmp"  # what `write_whole` leaves beside the file where it was killed


def write_whole(path: Path, text: str) -> None:
    """Write `path` so that it appears whole or not at all, and survives a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)
    if os.name == "posix":
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
