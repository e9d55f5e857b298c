"""Data files on this workstation: recognised, checked row by row, and written in the one form that the box reads.

Files are JSONL or one JSON array; what a row may look like is in shapes.py. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.domain.shapes import SHAPES, BadRow, Kind, Row, Shape, characters, recognised
from daemon.errors import SpecError

SHOWN = 20  # problems that are told; more of them rarely teach more
READ_SUFFIXES = (".jsonl", ".json")
ITEM = re.compile(r"\s*[\[,]\s*(?=[^\s\]])")


@dataclass(frozen=True)
class DataReport:
    """What a file holds. `rows` are the sound ones; `problems` the first of `bad`, as 'file:line: message'.

    `shape` is what was recognised and `converted` whether writing changes it; `characters` counts all text of the rows.
    """

    path: Path
    kind: Kind
    sha256: str
    shape: str
    converted: bool
    rows: int
    bad: int
    duplicates: int
    characters: int
    longest: int
    problems: tuple[str, ...]


def read_rows(path: Path, kind: Kind) -> DataReport:
    """Check every row of `path`. Raises SpecError when the file as a whole cannot be read."""
    content = _content(path)
    shape: Shape | None = None
    problems: list[str] = []
    seen: set[bytes] = set()
    rows = bad = duplicates = total = longest = 0
    for line, raw in _raw_rows(path, content):
        try:
            row = _object(raw)
            shape = shape or recognised(row, kind)
            canonical = shape.canonical(row)
        except BadRow as error:
            bad += 1
            if len(problems) < SHOWN:
                problems.append(f"{path}:{line}: {error}")
            continue
        rows += 1
        length = characters(canonical)
        total += length
        longest = max(longest, length)
        digest = hashlib.sha256(_dumped(canonical)).digest()
        duplicates += digest in seen
        seen.add(digest)
    if not rows and not bad:
        problems.append(f"{path}:1: the file has no rows")
    return DataReport(
        path=path,
        kind=kind,
        sha256=hashlib.sha256(content).hexdigest(),
        shape=shape.name if shape else "unknown",
        converted=shape.converts if shape else False,
        rows=rows,
        bad=bad,
        duplicates=duplicates,
        characters=total,
        longest=longest,
        problems=tuple(problems),
    )


def write_canonical(report: DataReport, folder: Path) -> tuple[Path, str, int]:
    """Write the rows to `folder/<sha256>.jsonl`; returns path, sha256 and row count. Doing it twice changes nothing.

    Raises SpecError when the report lists problems, or the file is no longer the one that was checked.
    """
    if report.problems:
        raise SpecError(list(report.problems))
    content = _content(report.path)
    if hashlib.sha256(content).hexdigest() != report.sha256:
        raise SpecError([f"{report.path}:1: the file changed while it was being read"])
    shape = next(shape for shape in SHAPES[report.kind] if shape.name == report.shape)
    lines = [_dumped(shape.canonical(_object(raw))) + b"\n" for _, raw in _raw_rows(report.path, content)]
    whole = b"".join(lines)
    sha256 = hashlib.sha256(whole).hexdigest()
    path = folder / f"{sha256}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f".{sha256}.{os.getpid()}.tmp"
        with open(beside, "wb") as f:
            f.write(whole)
            f.flush()
            os.fsync(f.fileno())
        beside.replace(path)
    return path, sha256, len(lines)


# Reading the file


def _content(path: Path) -> bytes:
    if path.suffix.lower() not in READ_SUFFIXES:
        raise SpecError(
            [f"{path}:1: {path.suffix or 'a file without a suffix'} cannot be read yet (expected JSONL or JSON)"]
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError([f"{path}:1: {error.strerror}"]) from error


def _raw_rows(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    """Line and row; one that is no JSON comes as the BadRow to raise. An array is told from JSONL by its bracket."""
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        yield from _array(path, content)
        return
    for line, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text.strip():
            yield line, _parsed(text)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:  # reported with its line by the caller
        return BadRow("is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({error})")


def _array(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    """The items of one JSON array, with the line each begins on."""
    try:
        text = content.decode("utf-8-sig")
        json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise SpecError([f"{path}:{error.lineno}: is not JSON ({error.msg})"]) from error
    except (ValueError, RecursionError) as error:
        raise SpecError([f"{path}:1: is not JSON ({error})"]) from error
    decoder = json.JSONDecoder()
    at, line = 0, 1
    while match := ITEM.match(text, at):  # the bracket or comma before an item
        line += text.count("\n", at, match.end())
        row, end = decoder.raw_decode(text, match.end())
        yield line, row
        line += text.count("\n", match.end(), end)
        at = end


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _object(raw: Any) -> Row:
    if isinstance(raw, BadRow):
        raise raw
    if not isinstance(raw, dict):
        raise BadRow("is not a JSON object")
    return raw


def _dumped(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
