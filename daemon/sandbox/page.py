"""The generated part of docs/sandbox.md; `python -m daemon.sandbox.page docs/sandbox.md` rewrites it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .faults import CATALOGUE, Fault
from .reply import Reply
from .shapes import SHAPES
from .words import REFUSALS

BEGIN, END = "<!-- generated from the tables: begin -->\n", "<!-- generated from the tables: end -->\n"
EXAMPLE: dict[str, Any] = {"success": True, "next_token": None, "instances": [{"id": 7, "label": "hp-a"}]}
LONGEST = 120  # characters of a reply that a table shows


def tables() -> str:
    """Markdown of every fault, of every `why` of `refusal`, and of every `shape` of `listing`."""
    faults = ((f"`{name}`", fault.moment, fault.does, _params(fault), fault.imitates)
              for name, fault in CATALOGUE.items())  # fmt: skip
    refusals = ((f"`{why}`", *_told(refusal())) for why, refusal in REFUSALS.items())
    shapes = ((f"`{shape}`", *_told(made(EXAMPLE))) for shape, made in SHAPES.items())
    return "\n".join(
        (
            _table(("fault", "when", "what happens", "parameters", "what it imitates"), faults),
            "### Refusals\n\nThe market's words for each `why` of `refusal`.\n",
            _table(("why", "status", "body"), refusals),
            f"### Listings\n\nWhat each `shape` of `listing` makes of `{json.dumps(EXAMPLE)}`.\n",
            _table(("shape", "status", "body"), shapes),
        )
    )


def with_tables(page: str) -> str:
    """`page` with its generated part as it would be printed now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def _params(fault: Fault) -> str:
    return ", ".join(f"`{name}` {_short(json.dumps(default), 24)}" for name, default in fault.params.items())


def _told(reply: Reply) -> tuple[str, str]:
    text = _short(reply.body.decode(), LONGEST)
    return str(reply.status), f"`{text}`" if text else "(empty)"


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest].rstrip()}..."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Rewrite the page that is named."""
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
