"""Eight hours asleep in each state, production and market's ledger in one world."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import cache
from random import Random

import pytest

from tests.simulation.full.faults import Sky
from tests.simulation.full.machine import STORAGE_PER_HOUR, Machine
from tests.simulation.full.market import FOREIGN, OFFER
from tests.simulation.full.simulation import Simulation
from tests.simulation.full.template import Terms

HOLD = 2_000_000  # micro-dollars, as the simulation's spec says
SLEEP_S = 8 * 3600.0
DISK = STORAGE_PER_HOUR * 8  # of a machine that stopped itself
BACK = OFFER.price_per_hour // 60  # a minute, until it has booted again and is reached
STATES = ("QUEUED", "SFT", "VERIFIED")
MORE = ("PROVISIONED", "DPO", "GGUF", "DOWNLOADED")


def billed(asleep_in: str | None) -> float:
    """What the machines of one undisturbed job bill, when this workstation sleeps as soon as the job is in a state."""
    sim = Simulation(7, Sky(Random(7)))

    def ours() -> list[Machine]:
        return [machine for number, machine in sim.market.machines.items() if number not in FOREIGN]

    async def fall_asleep() -> None:
        # In QUEUED the sleep that costs is the one that begins when the machine runs.
        while asleep_in not in sim.witness.states().values() or not any(machine.runs for machine in ours()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # simulated time costs nothing
        sim.clock.suspend(SLEEP_S)

    falling = sim.loop.create_task(fall_asleep(), context=Context()) if asleep_in else None

    result = sim.run()

    assert not result.violations
    assert falling is None or falling.done()
    return sum(machine.billed() for machine in ours())


@cache
def undisturbed() -> float:
    return billed(None)


@pytest.mark.parametrize("state", [*STATES, *(pytest.param(state, marks=pytest.mark.full) for state in MORE)])
def test_a_sleep_costs_no_more_than_a_hold(state: str) -> None:
    """Beyond what the same job costs awake: limits.hold at most, and the disk of a machine that stopped itself."""
    assert billed(state) - undisturbed() <= HOLD + DISK + BACK


def test_a_model_that_was_finished_in_a_sleep_comes_home_for_its_reserve() -> None:
    """The machine waited and stopped itself, and training's share of limits.cost is spent: it is asked all the same."""
    sim = Simulation(7, Sky(Random(7)), terms=Terms(cost=3.0))

    async def fall_asleep() -> None:
        while "SFT" not in sim.witness.states().values():  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # simulated time costs nothing
        sim.clock.suspend(SLEEP_S)

    sim.loop.create_task(fall_asleep(), context=Context())

    result = sim.run()

    assert not result.violations
    assert any("stops itself" in line for line in result.trace)
    assert result.ledger[0] == "DESTROYED"
