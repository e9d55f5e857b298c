"""A data file on this workstation, read once: every row checked, surveyed, and written in the form the box reads.

Two files with the same canonical rows are one: the written file is named by the sha256 of its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from daemon.errors import SpecError
from daemon.rows import readers
from daemon.rows.shapes import BadRow, Kind, Row, Shape, canonical, recognised
from daemon.rows.survey import Survey, digest

SHOWN = 20  # problems that are told; more of them rarely teach more


@dataclass(frozen=True)
class Canonical:
    """The rows as the box will read them. `path` exists, whole."""

    path: Path
    sha256: str
    rows: int


@dataclass(frozen=True)
class RowFile:
    """What a file holds. `problems` are the first of `bad` rows, as 'file:line: message'; nothing is written then.

    `sha256` is that of the file as it is, `unused` names columns that no row of the shape uses, `tokens` is the length
    of each row where they were counted.
    """

    path: Path
    kind: Kind
    sha256: str
    shape: Shape | None
    bad: int
    problems: tuple[str, ...]
    unused: tuple[str, ...]
    survey: Survey
    canonical: Canonical | None
    tokens: array[int] | None = None


def read(path: Path, kind: Kind, into: Path | None = None, count: Callable[[Row], int] | None = None) -> RowFile:
    """Read every row of `path`; with a folder `into`, write the canonical rows there when all of them are sound.

    `count` gives a canonical row's length in tokens, or raises BadRow.
    Raises SpecError when the file as a whole cannot be read, or changes meanwhile.
    """
    before, sha256 = _state(path), _sha256(path)
    shape: Shape | None = None
    problems: list[str] = []
    unused: set[str] = set()
    survey, bad = Survey(), 0
    tokens: array[int] | None = array("Q") if count else None
    with contextlib.nullcontext() if into is None else _Writer(into) as writer:
        for line, raw in readers.read(path):
            try:
                row = _object(raw)
                shape = shape or recognised(row, kind)
                made = canonical(row, shape)
                text = _dumped(made)
                if count and tokens is not None:
                    tokens.append(count(made))
            except BadRow as error:
                bad += 1
                if len(problems) < SHOWN:
                    problems.append(f"{path}:{line}: {error}")
                continue
            unused |= shape.unused(row)
            survey.add(line, row, made, digest(text))
            if writer:
                writer.add(text)
        if not survey.rows and not bad:
            problems.append(f"{path}:1: the file has no rows")
        if _state(path) != before:
            raise SpecError([f"{path}:1: the file changed while it was being read"])
        written = writer.keep(survey.rows) if writer and not problems else None
    return RowFile(path, kind, sha256, shape, bad, tuple(problems), tuple(sorted(unused)), survey, written, tokens)


def kind_of(path: Path) -> Kind:
    """What the rows are for, by the first of them: pairs are for DPO. Raises SpecError."""
    for _, raw in readers.read(path):
        if isinstance(raw, dict):
            return "dpo" if raw.keys() >= {"chosen", "rejected"} else "sft"
    return "sft"


class _Writer:
    """A file that appears under its content's name, whole, or not at all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._sha256 = folder, hashlib.sha256()
        self._beside = folder / f".{os.getpid()}-{id(self)}.tmp"
        self._file = open(self._beside, "wb")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)

    def add(self, text: bytes) -> None:
        self._file.write(text + b"\n")
        self._sha256.update(text + b"\n")

    def keep(self, rows: int) -> Canonical:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self._folder / f"{self._sha256.hexdigest()}.jsonl"
        self._beside.replace(path)
        return Canonical(path, self._sha256.hexdigest(), rows)


def _state(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise SpecError([f"{path}:1: {error.strerror}"]) from error
    return status.st_ino, status.st_size, status.st_mtime_ns


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SpecError([f"{path}:1: {error.strerror}"]) from error


def _object(raw: Any) -> Row:
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow("is not a JSON object")
    return raw


def _dumped(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:  # of tools alone: texts are checked one by one
        raise BadRow(f"tools: {error}") from error
