"""What the rows of one file are like, gathered row by row in a few dozen bytes each: lengths, repetitions, dates.

Texts are compared by 64-bit digests, of which a million give one false match in ten million files.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.rows.shapes import Row

DATE_COLUMNS = ("date", "datetime", "timestamp", "time", "day", "created_at")
MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|<\uff5c[^<>\s]{1,40}\uff5c>|<s>|</s>|\[/?INST\]")
MILLISECONDS_FROM = 1e11  # unix seconds reach this in the year 5138, milliseconds reached it in 1973
MILLISECONDS_TO = 253_402_300_800_000  # the end of the year 9999: beyond it a number is no time that a day has
NO_ROW = -1


@dataclass
class Repeated:
    """Rows that are an earlier row once more, and where the first of them is."""

    count: int = 0
    first: int = NO_ROW  # line
    seen: set[int] = field(default_factory=set)

    def add(self, digest: int, line: int) -> None:
        if digest not in self.seen:
            self.seen.add(digest)
            return
        self.count += 1
        if self.first == NO_ROW:
            self.first = line


@dataclass
class Survey:
    """The sound rows of one file. Lengths are characters of text, one a row, in file order."""

    lengths: array[int] = field(default_factory=lambda: array("Q"))
    exact: Repeated = field(default_factory=Repeated)  # whole rows
    alike: Repeated = field(default_factory=Repeated)  # whole rows but for case, width and blanks
    prompts: array[int] = field(default_factory=lambda: array("Q"))  # digests, alike as above, one a row
    lines: array[int] = field(default_factory=lambda: array("Q"))
    dates: array[float] = field(default_factory=lambda: array("d"))  # unix seconds, of the rows that carry one
    chosen: int = 0  # characters of all chosen answers
    rejected: int = 0
    marked: Repeated = field(default_factory=Repeated)  # rows with special tokens written out
    example: Row | None = None

    def add(self, line: int, original: Row, canonical: Row, digest: int) -> None:
        """One sound row; `digest` is that of its canonical text."""
        text = "\n".join(texts(canonical))
        self.lengths.append(len(text))
        self.lines.append(line)
        self.exact.add(digest, line)
        self.alike.add(_digest(alike(text)), line)
        self.prompts.append(_digest(alike("\n".join(texts(prompt(canonical))))))
        if (when := dated(original)) is not None:
            self.dates.append(when)
        if "chosen" in canonical:
            self.chosen += sum(map(len, texts({"answer": canonical["chosen"]})))
            self.rejected += sum(map(len, texts({"answer": canonical["rejected"]})))
        if MARKER.search(text):
            self.marked.count += 1
            self.marked.first = line if self.marked.first == NO_ROW else self.marked.first
        self.example = self.example or canonical

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def length(self, share: float) -> int:
        return quantile(self.lengths, share)


def quantile(values: Sequence[int], share: float) -> int:
    """The value that a `share` of all values does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def texts(canonical: Row) -> Iterator[str]:
    """Every text of a row, in reading order: what is written, called and, of tools, described."""
    for value in canonical.values():
        if isinstance(value, str):
            yield value
            continue
        for item in value:
            yield item["content"] if "content" in item else json.dumps(item, ensure_ascii=False)
            for call in item.get("tool_calls", ()):
                yield json.dumps(call["function"], ensure_ascii=False)


def prompt(canonical: Row) -> Row:
    """What is asked: everything before the last answer; of plain text, all of it."""
    if "prompt" in canonical:
        return {"prompt": canonical["prompt"]}
    if "messages" in canonical:
        return {"messages": canonical["messages"][:-1]}
    return canonical


def alike(text: str) -> str:
    """`text` as one would compare it by eye: no difference in case, character width or blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def dated(original: Row) -> float | None:
    """The time that a row says it is of, in unix seconds; None when no column looks like one."""
    for column in DATE_COLUMNS:
        if column in original and (seconds := _seconds(original[column])) is not None:
            return seconds
    return None


def _seconds(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value.strip())
        except ValueError:  # a column of that name may hold anything
            return None
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time(), datetime.UTC).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MILLISECONDS_TO:
        return float(value / 1000 if value >= MILLISECONDS_FROM else value)
    return None


def _digest(text: str) -> int:
    return digest(text.encode("utf-8", "surrogatepass"))


def digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
