"""The decision tier: seeds without a violation, exact replay, every fault firing, coverage that does not fall."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.coverage import cells
from tests.simulation.decision.__main__ import Result, run_range
from tests.simulation.decision.checks import AT
from tests.simulation.decision.faults import ELSEWHERE, FAMILIES, FAULTS, Fault
from tests.simulation.decision.pinned import PINNED
from tests.simulation.decision.run import Run, simulate
from tests.simulation.invariants import INVARIANTS

SEEDS = 13_000
REACHED = 0.967  # of all cells by so many seeds, on the day this was written


@pytest.fixture(scope="module")
def hunt() -> Iterator[Result]:
    yield run_range(range(SEEDS))


def test_no_seed_violates_an_invariant(hunt: Result) -> None:
    """Chaos and healing leave every promise kept."""
    assert hunt.violations == []


def test_coverage_does_not_fall(hunt: Result) -> None:
    """The seeds of this test reach at least the share of cells that they reached when it was written."""
    assert len(hunt.cells & set(cells())) >= REACHED * len(cells())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_fires(fault: Fault) -> None:
    """Of a few runs that aim at it, one shows it striking."""
    aims = [cell for cell in cells() if cell.fault == fault.name]

    assert any(fault.name in Run(seed, aims[seed % len(aims)]).execute().struck for seed in range(25))


def test_every_family_is_here_or_named_elsewhere() -> None:
    """All sixteen families have a row, or a reason for having none."""
    assert {fault.family for fault in FAULTS} | set(ELSEWHERE) == set(FAMILIES)


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same trace."""
    assert simulate(19, tracing=True).trace == simulate(19, tracing=True).trace


@pytest.mark.parametrize("seed", PINNED)
def test_pinned(seed: int) -> None:
    """A seed that once failed fails no more."""
    simulate(seed)


def test_the_table_says_what_is_checked_here() -> None:
    """Every invariant that names this tier has a check in it, and no check is missing from the table."""
    assert set(AT) == {invariant.id for invariant in INVARIANTS if "decision" in invariant.where}
