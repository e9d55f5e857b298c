"""Data files as rows, one at a time: whatever the format, a reader yields (number, row) and never holds the file.

The number is the line a row begins on; in Parquet, which has no lines, it counts rows from 1. A single row that cannot
be read comes as a BadRow to be counted; a file that is broken as a whole raises SpecError.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from daemon.errors import SpecError
from daemon.rows.shapes import BadRow
from daemon.rows.window import MAX_ROW, Window

Numbered = tuple[int, Any]  # line or row, and the value: a row, or the BadRow that stands for it

INSTALL = "pip install 'homeport[data]'"
MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark, which some editors write
DELIMITERS = ",;\t"
NESTED = ("messages", "conversations", "tools")  # columns that a table can only hold as JSON text
BROKEN_BYTE = re.compile("[\udc80-\udcff]")  # what Python makes of a byte that is no UTF-8
BATCH = 512  # rows of a Parquet file in memory at once


@dataclass(frozen=True)
class Format:
    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Iterator[Numbered]]


def read(path: Path) -> Iterator[Numbered]:
    """The rows of `path` in their order. Raises SpecError: an unknown suffix, no such file, a broken file."""
    suffix = path.suffix.lower()
    reader = next((each for each in FORMATS if suffix in each.suffixes), None)
    if reader is None:
        known = ", ".join(name for each in FORMATS for name in each.suffixes)
        raise SpecError([f"{path}:1: {suffix or 'no suffix'} is no format of data (expected {known})"])
    try:
        yield from reader.read(path)
    except OSError as error:
        raise SpecError([f"{path}:1: {error.strerror}"]) from error


def _json(path: Path) -> Iterator[Numbered]:
    """One object a line, or one array of objects: told apart by the first character, whatever the file is called."""
    with open(path, "rb") as file:
        begin = file.read(4096).removeprefix(MARK).lstrip()
        file.seek(0)
        yield from _array(path, file) if begin.startswith(b"[") else _lines(path, file)


def _lines(path: Path, file: BinaryIO) -> Iterator[Numbered]:
    """Only a line feed ends a line: a text may hold U+2028."""
    for line, text in enumerate(iter(lambda: file.readline(MAX_ROW + 1), b""), start=1):
        if len(text) > MAX_ROW:
            raise SpecError([f"{path}:{line}: is longer than {MAX_ROW >> 20} MiB (expected one row a line)"])
        text = text.removeprefix(MARK) if line == 1 else text
        if text.strip():
            yield line, _parsed(text)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8"), parse_constant=no_constant)
    except UnicodeDecodeError:  # told with its line, like every bad row
        return BadRow("is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not JSON ({error})")


def no_constant(name: str) -> None:
    """JSON has no NaN and no infinity, though Python's parser takes them."""
    raise ValueError(f"{name} is not JSON")


def _array(path: Path, file: BinaryIO) -> Iterator[Numbered]:
    """The items of one JSON array, with the line each begins on."""
    text = Window(path, file, json.JSONDecoder(parse_constant=no_constant))
    text.take("[")
    while text.peek() != "]":
        line = text.line
        yield line, text.value()
        if text.peek() == ",":
            text.take(",")
            if text.peek() == "]":
                raise text.broken("a comma before the end")
        elif text.peek() != "]":
            raise text.broken("expected ',' or ']'")
    text.take("]")
    if text.peek():
        raise text.broken("more text after the array")


def _table(path: Path) -> Iterator[Numbered]:
    """CSV with a header line. Comma, semicolon or tab, whichever the header has most of."""
    csv.field_size_limit(MAX_ROW)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        header = file.readline(MAX_ROW)
        file.seek(0)
        cells = csv.reader(file, delimiter=max(DELIMITERS, key=header.count), strict=True)
        columns: list[str] = []
        line = 1
        while True:
            try:
                row = next(cells, None)
            except csv.Error as error:  # an open quote swallows what follows: nothing after it can be trusted
                raise SpecError([f"{path}:{line}: is not CSV ({error})"]) from error
            if row is None:
                return
            if not columns:
                columns = row
                if len(set(columns)) < len(columns):
                    raise SpecError([f"{path}:1: names a column twice (expected a header of different names)"])
            elif row:
                yield line, _cells(columns, row)
            line = cells.line_num + 1


def _cells(columns: list[str], row: list[str]) -> Any:
    if len(row) != len(columns):
        return BadRow(f"has {len(row)} cells, the header names {len(columns)} columns")
    if any(BROKEN_BYTE.search(cell) for cell in row):
        return BadRow("is not UTF-8 text")
    found: dict[str, Any] = dict(zip(columns, row, strict=True))
    for column in NESTED:
        if found.get(column):
            try:
                found[column] = json.loads(found[column], parse_constant=no_constant)
            except (ValueError, RecursionError) as error:
                return BadRow(f"{column} is not JSON ({error})")
    return found


def _parquet(path: Path) -> Iterator[Numbered]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SpecError([f"{path}:1: reading Parquet needs pyarrow, which is not installed"], hint=INSTALL) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            count = 0
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    count += 1
                    yield count, _without_nulls(row)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the last two: of a time that no day has
        raise SpecError([f"{path}:1: is not Parquet that can be read ({error})"]) from error


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object of a column the keys of all of them, empty ones as null."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


FORMATS = (
    Format("JSON lines, or one JSON array", (".jsonl", ".ndjson", ".json"), _json),
    Format("CSV with a header", (".csv", ".tsv"), _table),
    Format("Parquet", (".parquet",), _parquet),
)
