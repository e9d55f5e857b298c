"""The simulator itself: it replays, it comes to the right end under a clear sky, and a few seeds of chaos hold."""

from __future__ import annotations

import pytest

from tests.simulation.invariants import INVARIANTS

from .invariants import CHECKED
from .pinned import PINNED, Pinned
from .simulation import Simulation, simulate

SEEDS = range(1000, 1016)


def test_a_clear_sky() -> None:
    """Without a fault the job ends DESTROYED, its model whole here, no machine left, no invariant hurt."""
    found = Simulation(1).run()

    assert found.violations == ()
    assert found.ledger[:2] == ("DESTROYED", "left: []") and len(found.ledger) == 4


def test_a_seed_replays() -> None:
    """The same seed gives the same trace, line by line."""
    first, second = simulate(7), simulate(7)

    assert first.trace == second.trace


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos(seed: int) -> None:
    """Whatever the sky of this seed brings: no invariant is violated, before and after it clears."""
    found = simulate(seed)

    assert not found.violations, "\n".join((*found.trace[-200:], *map(str, found.violations)))


@pytest.mark.parametrize("pinned", PINNED, ids=lambda pinned: f"seed-{pinned.seed}")
def test_pinned(pinned: Pinned) -> None:
    """A seed that once violated an invariant does not any more."""
    found = simulate(pinned.seed)

    assert not found.violations, f"{pinned.what}\n" + "\n".join(map(str, found.violations))


def test_the_table_says_what_is_checked_here() -> None:
    """Every invariant that names this tier is looked at in it, and nothing is looked at that the table lacks."""
    assert set(CHECKED) == {invariant.id for invariant in INVARIANTS if "full" in invariant.where}
