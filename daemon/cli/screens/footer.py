"""The money strip and what needs a person: the end of every screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from daemon.cli.terminal import Look, dollars, duration, seconds_since
from daemon.store.shapes import Attention, MoneyStrip


def money_strip(money: MoneyStrip, look: Look, now: float) -> list[str]:
    parts = [_rented(money)]
    if money["credit"] is not None:
        hours = money["hours_left"]
        lasts = f" ({duration(hours * 3600)} at this rate)" if hours is not None else ""
        parts.append(f"Balance {dollars(money['credit'])}{lasts}.")
    age = seconds_since(money["as_of"], now)
    if age is not None:
        parts.append(f"Checked {duration(age)} ago.")
    if money["problem"]:
        parts.append(f"The market cannot be asked: {money['problem']}.")
    return textwrap.wrap(" ".join(parts), look.width)


def _rented(money: MoneyStrip) -> str:
    count, unsure = money["machines"], money["unsure"]
    if count:
        so_far = f", {dollars(money['cost'])} so far" if float(money["cost"]) else ""  # not known, or not begun
        known = f"Renting {_machines(count)}, {dollars(money['rate'])}/h{so_far}."
        return f"{known} Beside {'it' if count == 1 else 'them'} {unsure} may bill." if unsure else known
    if unsure:
        return f"Nothing is known to be rented, but {_machines(unsure)} may bill."
    return "Nothing is being rented. $0.00/h."


def _machines(count: int) -> str:
    return f"{count} machine{'' if count == 1 else 's'}"


def attention(items: Sequence[Attention], look: Look) -> list[str]:
    """One mark a thing, the command to type on a line of its own."""
    lines = []
    for item in items:
        colour = "bad" if item["urgent"] else "warn"
        text = textwrap.wrap(item["text"], look.width, initial_indent="! ", subsequent_indent="  ")
        lines += [look.paint(line, colour) for line in text]
        lines.append(f"  Try: {item['hint']}")
    return lines
