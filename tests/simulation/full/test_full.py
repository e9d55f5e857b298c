"""The simulator itself: it replays, it comes to the right end under a clear sky, and a few seeds of chaos hold."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from daemon.box.box import Box
from daemon.market.port import Market
from tests.simulation.invariants import INVARIANTS

from .cells import BOUNDARIES, cells, road
from .faults import FAULTS, Sky
from .invariants import CHECKED
from .scenes import SCENES, Scene
from .seeds import aim_of, aimed, simulate
from .simulation import Simulation

SEEDS = range(1000, 1004)
PATIENCE_S = 4000.0  # until a fault has struck
FAMILIES = tuple(dict.fromkeys(fault.family for fault in FAULTS.values()))


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_fires(family: str) -> None:
    """A run that goes for a fault of this family meets it, and no invariant is violated."""
    seeds = (n for n in range(len(cells())) if FAULTS[aim_of(n).fault].family == family)
    seed = next(n for n in seeds if len(road(aim_of(n))) == 1)  # one that needs no preparation is quick

    found = aimed(seed)

    assert aim_of(seed) in found.cells
    assert not found.violations, "\n".join((*found.trace[-200:], *map(str, found.violations)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fires(fault: str) -> None:
    """Each strikes where it is made sure, in a life that ends there."""
    aims = [cell for cell in cells() if cell.fault == fault]
    way = min((road(aim) for aim in aims), key=len, default=[])
    sim = Simulation(1, Sky(Random(1), sure=set() if way else {fault}), way=way, dpo=False)

    async def until_it_strikes() -> None:
        sim.begin_life()
        await sim.person.submit()
        while not sim.sky.strokes[fault] and sim.loop.time() < PATIENCE_S:  # noqa: ASYNC110
            await asyncio.sleep(5.0)  # simulated time costs nothing

    with sim.open():
        sim.follow(until_it_strikes)

    assert sim.sky.strokes[fault]


def test_all_sixteen_families_are_here() -> None:
    """F1 to F16, each with a fault of this tier."""
    assert set(FAMILIES) == {f"F{n}" for n in range(1, 17)}


def test_the_names_of_calls_are_those_of_the_ports() -> None:
    """A boundary of the table of cells is a method of the market's port or of the box."""
    named = {name for name in BOUNDARIES if name.split()[0] in ("market", "box")} - {"box block"}
    ours = {f"market {call}" for call in vars(Market)} | {f"box {call}" for call in vars(Box)}

    assert {name.replace("read events", "read_lines").replace("read log", "read_lines") for name in named} <= ours


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_scene(scene: Scene) -> None:
    """Every strike of it comes, and no invariant is violated."""
    sim = Simulation(1, Sky(Random(1)), way=scene.way, dpo=False, terms=scene.terms)

    found = sim.run()

    assert not sim.way
    assert not found.violations, f"{scene.rule}\n" + "\n".join((*found.trace[-200:], *map(str, found.violations)))


def test_the_table_says_what_is_checked_here() -> None:
    """Every invariant that names this tier is looked at in it, and nothing is looked at that the table lacks."""
    assert set(CHECKED) == {invariant.id for invariant in INVARIANTS if "full" in invariant.where}
