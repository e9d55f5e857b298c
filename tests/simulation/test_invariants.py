"""The table of invariants names what exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.invariants import INVARIANTS, Invariant

ROOT = Path(__file__).parents[2]
TIERS = {"decision", "full"}


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.id)
def test_it_is_checked_where_the_table_says(invariant: Invariant) -> None:
    """By a tier of the simulator, or by a test file that is there."""
    assert invariant.where
    assert [where for where in invariant.where if where not in TIERS and not (ROOT / where).is_file()] == []
