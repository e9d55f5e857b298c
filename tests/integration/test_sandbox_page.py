"""docs/sandbox.md against the tables it is printed from."""

from __future__ import annotations

from pathlib import Path

from daemon.sandbox import page

PAGE = Path(__file__).parents[2] / "docs/sandbox.md"


def test_the_page_is_what_the_tables_print() -> None:
    """Every fault, refusal and shape stands in the page as the code has it today."""
    on_disk = PAGE.read_text(encoding="utf-8")

    assert page.with_tables(on_disk) == on_disk, "run: python -m daemon.sandbox.page docs/sandbox.md"
