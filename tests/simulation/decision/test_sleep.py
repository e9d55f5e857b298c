"""Eight hours asleep, begun at the boundaries of every state: never dearer than `limits.hold` beyond the work."""

from __future__ import annotations

import pytest

from daemon.domain.lifecycle import JobState
from tests.simulation.coverage import STATES, cells
from tests.simulation.decision.run import Run

SLEEP = "sleep of 8 h"
TRIES = range(3)


@pytest.mark.parametrize("state", STATES)
def test_a_sleep_costs_no_more_than_a_hold(state: JobState) -> None:
    """By the market's own ledger, checked as each sleep ends (I11); most boundaries of the state are slept at."""
    aims = [cell for cell in cells() if (cell.state, cell.fault) == (state, SLEEP)]

    slept_at = {cell for aim in aims for seed in TRIES for cell in Run(seed, aim).execute().cells}

    assert len(slept_at & set(aims)) > len(aims) / 2
