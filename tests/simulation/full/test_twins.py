"""Two jobs at once: nothing of one reaches the machine, the model or the money of the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from daemon.artifacts import folder
from daemon.domain import ids
from daemon.domain.lifecycle import JobState
from daemon.market.permit import DestroyPermit
from daemon.market.port import Reply
from remote_payload.contract import Status

from .box import FakeBox
from .cells import Strike
from .faults import Sky
from .market import FOREIGN, FakeMarket
from .seeds import twins
from .simulation import Simulation
from .template import NAMES, USUAL, Twin

SEEDS = range(2000, 2003)
PATIENCE_S = 2000.0


def two_jobs(after_s: float) -> Simulation:
    """Under a clear sky. With this seed both have found their offer before one of them has rented it."""
    return Simulation(2, Sky(Random(2)), dpo=False, terms=replace(USUAL, twin=Twin(after_s, dpo=True)))


def test_a_clear_sky() -> None:
    """Both want the same offer, one is refused, and each ends with a machine and the model of its own."""
    sim = two_jobs(after_s=0.0)

    found = sim.run()

    assert found.violations == ()
    assert found.ledger[:3] == ("DESTROYED", "DESTROYED", "left: []")
    assert [line.split()[:2] for line in found.ledger[3:]] == [
        [name, file] for name in sorted(NAMES) for file in ("adapter.safetensors", "model-Q8_0.gguf")
    ]
    assert len(sim.market.refused) == 1
    assert {m.job for m in sim.market.machines.values() if m.id not in FOREIGN} == sim.jobs.keys()


def test_a_seed_replays() -> None:
    """The same seed gives the same trace, whatever ids the daemon would have drawn."""
    first, second = twins(7), twins(7)

    assert first.trace == second.trace


def test_one_after_the_other() -> None:
    """What came home before says nothing against the second: it is rented for, and ends as the first did."""
    found = two_jobs(after_s=1000.0).run()

    assert found.violations == ()
    assert found.ledger[:3] == ("DESTROYED", "DESTROYED", "left: []")


def test_a_job_that_a_restored_database_does_not_know() -> None:
    """Its person submits it again; the machine that it had belongs to nobody now, and is left alone."""
    copied = Strike("restored", JobState.QUEUED, "market search")
    terms = replace(USUAL, twin=Twin(20.0, dpo=False))
    sim = Simulation(1, Sky(Random(1)), way=[copied], dpo=False, terms=terms)

    found = sim.run()

    assert found.violations == ()
    assert list(sim.jobs.values()) == [*NAMES, NAMES[1]]
    assert found.ledger[2] == "left: [1001]"
    assert sim.market.machines[1001].job == list(sim.jobs)[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_chaos(seed: int) -> None:
    """Whatever the sky of this seed brings to both: no invariant is violated, before and after it clears."""
    found = twins(seed)

    assert not found.violations, "\n".join((*found.trace[-200:], *map(str, found.violations)))


def _other(sim: Simulation, instance: int) -> int:
    """The machine of the other job while it is there."""
    job = sim.market.machines[instance].job
    others = (m.id for m in sim.market.machines.values() if m.job in sim.jobs and m.job != job and m.is_there)
    return next(others, instance)


def _destroy(planted: pytest.MonkeyPatch) -> None:
    """The machine of the other job is let go."""
    destroy = FakeMarket.destroy

    async def crossed(market: FakeMarket, permit: DestroyPermit) -> Reply:
        return await destroy(market, replace(permit, instance_id=_other(market.sim, permit.instance_id)))

    planted.setattr(FakeMarket, "destroy", crossed)


def _stage(planted: pytest.MonkeyPatch) -> None:
    """A stage is begun on the machine of the other job."""
    start = FakeBox.start_stage

    async def crossed(box: FakeBox, nonce: str, env: dict[str, str]) -> Status:
        instance = box.address.instance_id
        box.address = replace(box.address, instance_id=_other(box.sim, instance))
        return await start(box, nonce, env)

    planted.setattr(FakeBox, "start_stage", crossed)


def _label(planted: pytest.MonkeyPatch) -> None:
    """The second machine is rented under the label of the first job."""
    label, jobs = ids.label, list[str]()

    def crossed(install: str, job: str, fresh: str) -> str:
        jobs.append(job)
        return label(install, jobs[0], fresh)

    planted.setattr(ids, "label", crossed)


def _folder(planted: pytest.MonkeyPatch) -> None:
    """The model of the one lies under the name of the other."""
    planted.setattr(folder, "_home", lambda models, name: Path(models, NAMES[0]))


@pytest.mark.parametrize(
    ("invariants", "plant"),
    [({"I1", "I18"}, _destroy), ({"I14", "I18"}, _stage), ({"I6"}, _label), ({"I20"}, _folder)],
)
def test_a_mix_up_is_found(
    invariants: set[str], plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted in a run without any fault, each is seen under the invariants that it violates."""
    plant(monkeypatch)
    sim = two_jobs(after_s=150.0)

    async def until_it_is_seen() -> None:
        sim.begin_life()
        await sim.person.submit()
        await sim.person.submit_twin()
        while not sim.witness.violations and sim.loop.time() < PATIENCE_S:  # noqa: ASYNC110
            await asyncio.sleep(5.0)  # simulated time costs nothing

    with sim.open():
        sim.follow(until_it_is_seen)
        sim.witness.after_death()

        assert invariants <= {violation.invariant for violation in sim.witness.violations}
