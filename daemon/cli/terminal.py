"""What goes to the terminal and how: colour, width, tables, units. Answers on standard output, talk on standard error.

Without a terminal, or with NO_COLOR, no escape byte is written. Text that came from a market or a box is stripped of
control characters before it is laid out (`plain`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from calendar import timegm
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, TextIO

import click

from daemon.domain import money
from daemon.errors import HomeportError, SpecError

SPARKS = "▁▂▃▄▅▆▇█"
COLOURS = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}


@dataclass(frozen=True)
class Look:
    """How a screen may be drawn."""

    width: int = 80
    colour: bool = False
    blocks: bool = True  # the encoding has block characters
    live: bool = False  # a terminal, where a line may be drawn over

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self.colour else text

    def clip(self, text: str, width: int) -> str:
        return text if len(text) <= width else text[: max(0, width - 1)] + ("…" if self.blocks else "~")

    def bar(self, done: float, total: float, cells: int = 8) -> str:
        full, empty = ("█", "░") if self.blocks else ("#", "-")
        filled = int(cells * min(done, total) / total) if total else 0
        return full * filled + empty * (cells - filled)

    def spark(self, values: Sequence[float], cells: int = 20) -> str:
        if not self.blocks or len(values) < 2:
            return ""
        picked = [values[i * (len(values) - 1) // (cells - 1)] for i in range(cells)] if len(values) > cells else values
        low, high = min(picked), max(picked)
        scale = (len(SPARKS) - 1) / (high - low) if high > low else 0
        return "".join(SPARKS[round((value - low) * scale)] for value in picked)


def look() -> Look:
    """As standard output and the environment allow."""
    terminal = _is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"
    return Look(
        width=shutil.get_terminal_size().columns,
        colour=terminal and "NO_COLOR" not in os.environ,
        blocks="utf" in (getattr(sys.stdout, "encoding", None) or "").lower(),
        live=terminal,
    )


def interactive() -> bool:
    """Whether a person can be asked."""
    return _is_terminal(sys.stdin) and _is_terminal(sys.stderr)


def _is_terminal(stream: TextIO | None) -> bool:
    """None: it was closed before we began."""
    return stream is not None and stream.isatty()


def typed_number(prompt: str) -> int:
    """What the person types, as a number; anything else is -1, which no instance has."""
    text: str = click.prompt(prompt, err=True)
    return int(text) if text.strip().isdecimal() else -1


def report(error: HomeportError) -> None:
    """One line what, one line what to do."""
    lines = error.problems if isinstance(error, SpecError) else error.message.splitlines()
    for line in lines:
        click.echo(f"Error: {plain(line)}", err=True)
    if error.hint:
        click.echo(f"Try:   {plain(error.hint)}", err=True)


def emit_json(value: Any, *, line: bool = False) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if line else 2))


def plain(text: str) -> str:
    """`text` without control characters: an escape sequence from a box must not reach the terminal."""
    return "".join(char if char.isprintable() or char == " " else "?" for char in text)


def cleaned(value: Any) -> Any:
    """A reading with every string in it made plain; line breaks of a log survive."""
    if isinstance(value, str):
        return "\n".join(plain(line.replace("\t", "    ")) for line in value.split("\n"))
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Column:
    title: str
    cells: list[str]
    right: bool = False
    drop: int = 0  # on a narrow terminal the lowest goes first; 0 stays
    least: int = 0  # may be clipped to so many characters; 0: never


def table(columns: Sequence[Column], look: Look) -> list[str]:
    """Lines of at most `look.width` characters: droppable columns go first, then the shrinking ones are clipped."""
    kept = list(columns)
    while sum(map(_least, kept)) + 2 * (len(kept) - 1) > look.width and (droppable := [c for c in kept if c.drop]):
        kept.remove(min(droppable, key=lambda c: c.drop))
    widths = [_wanted(c) for c in kept]
    excess = sum(widths) + 2 * (len(kept) - 1) - look.width
    for i in sorted(range(len(kept)), key=lambda i: widths[i] - _least(kept[i]), reverse=True):
        cut = max(0, min(excess, widths[i] - _least(kept[i])))
        widths[i], excess = widths[i] - cut, excess - cut
    rows = [
        [c.title for c in kept],
        *([" ".join(c.cells[i].split()) for c in kept] for i in range(len(columns[0].cells))),
    ]
    return [
        "  ".join(_fit(look.clip(cell, w), w, c.right) for cell, w, c in zip(row, widths, kept, strict=True)).rstrip()
        for row in rows
    ]


def _wanted(column: Column) -> int:
    return max(len(column.title), *(len(cell) for cell in column.cells), 0)


def _least(column: Column) -> int:
    return min(_wanted(column), max(len(column.title), column.least)) if column.least else _wanted(column)


def _fit(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def dollars(amount: str) -> str:
    """A decimal string for a person: two places, four below one cent."""
    return money.show(money.micros(amount))


def cents(amount: str) -> str:
    """The same for a table's cell: always two places, no sign."""
    return str(Decimal(amount).quantize(Decimal("0.01"), ROUND_HALF_UP))


def duration(seconds: float) -> str:
    """Two units at most: 14s, 4m06s, 2h31m, 3d4h."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02}s"
    if s < 86_400:
        return f"{s // 3600}h{s % 3600 // 60:02}m"
    return f"{s // 86_400}d{s % 86_400 // 3600}h"


def seconds_since(iso: str | None, now: float) -> float | None:
    """Seconds from an ISO-8601 UTC time to `now` (unix seconds)."""
    return None if iso is None else now - timegm(time.strptime(iso, "%Y-%m-%dT%H:%M:%SZ"))


def local(iso: str | None, now: float) -> str:
    """A wire time in this computer's zone: the time today, else day and time."""
    if iso is None:
        return "?"
    then = time.localtime(now - (seconds_since(iso, now) or 0))
    today = time.localtime(now)[:3] == then[:3]
    return time.strftime("%H:%M" if today else "%d %b %H:%M", then)


def size(count: float) -> str:
    """Bytes in decimal units, as disks and markets count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def examples(*commands: str) -> str:
    """The end of a verb's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)
