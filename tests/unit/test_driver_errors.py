"""What a job does about everything that can go wrong: one row an error. And what a defect in one job does to others."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import store
from scripted_market import ScriptedMarket

from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control import driver as driving
from daemon.control import supervisor as supervising
from daemon.control.bell import Bell
from daemon.control.driver import Driver
from daemon.control.leadership import hold_lock
from daemon.control.operate import Operator
from daemon.control.permits import NoPermit
from daemon.control.reconcile import Reconciler
from daemon.control.supervisor import Supervisor
from daemon.control.world import World
from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.records import Job
from daemon.domain.spec import JobSpec, from_canonical
from daemon.errors import (
    AccessDenied,
    CredentialsRefused,
    Fenced,
    HostKeyChanged,
    LinkLost,
    LostRace,
    MarketRefused,
    MarketUnreachable,
    RateLimited,
    Refused,
    RemoteFailed,
    StoreError,
    TransferFailed,
)
from daemon.settings import Paths, Settings
from daemon.store import jobs, leases
from remote_payload.contract import ContractError

SPEC = JobSpec.model_validate({"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}}).canonical_json()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database, clock = store.opened(tmp_path), ManualClock()
    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))

    async def silent(title: str, text: str, again: bool) -> bool:
        return True

    with database.write() as c:
        store.add_job(c, spec_json=SPEC)
    operator = Operator(database, ScriptedMarket(), clock, settings)
    yield World(database, operator, clock, settings, silent, cast(Any, None), verify)
    database.close()


def stored(world: World) -> Job:
    with world.database.read() as c:
        return jobs.get(c, store.JOB)


class Tried:
    """A driver whose every action raises `error`; `waits` are the pauses that it took."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.driver = Driver(world, stored(world), from_canonical(SPEC))
        self.waits: list[float] = []

        async def fail(acting: Any, s: Any, action: Any) -> None:
            raise error

        async def wait(seconds: float) -> None:
            self.waits.append(seconds)

        monkeypatch.setattr(driving, "act", fail)
        monkeypatch.setattr(self.driver.bell, "wait", wait)

    async def once(self, action: actions.Action | None = None) -> None:
        await self.driver._perform(self.driver._look(), action or actions.Wait("for the test"))


HELD = [
    (HostKeyChanged("another key"), "HOST_KEY"),
    (TransferFailed("other bytes"), "TRANSFER_FAILED"),
    (ContractError("contract 99"), "TRANSFER_FAILED"),
    (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "DISK_FULL"),
    (OSError(errno.EXDEV, "Invalid cross-device link"), "DISK_FULL"),
    (CredentialsRefused("bad key"), "CREDENTIALS"),
    (MarketRefused("not today"), "INTERNAL"),
    (RemoteFailed("it broke", exit_code_remote=1), "INTERNAL"),
    (NoPermit("no fact permits it"), "INTERNAL"),
]


@pytest.mark.parametrize(("error", "reason"), HELD, ids=[f"{type(e).__name__}-{r}" for e, r in HELD])
async def test_what_needs_the_person_holds_the_job(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """HELD with the reason and the error's words; when it is held for that already, it only waits."""
    one = Tried(world, monkeypatch, error)

    await one.once()
    held = stored(world)
    await one.once()

    assert held.hold_reason == reason and str(error) in (held.hold_detail or "")
    assert stored(world) == held
    assert len(one.waits) == 1
    assert world.news.is_set()


@pytest.mark.parametrize(
    "error",
    [
        TransferFailed("other bytes"),
        ContractError("no path"),
        RemoteFailed("it broke", exit_code_remote=1),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ESTALE, "Stale file handle"),
    ],
)
async def test_a_save_that_fails_leaves_its_hold_as_it_is(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Another in its place would save nothing and name another way on. It is counted, and told."""
    with world.database.write() as c:
        lease = leases.get(c, store.add_lease(c))
        jobs.hold(c, jobs.get(c, store.JOB), HoldReason.BUDGET, "spent", world.clock.wall_ms(), 1)
    one, before = Tried(world, monkeypatch, error), stored(world)

    await one.once(actions.Save(lease))

    assert stored(world) == before
    assert one.driver._look().saves_failed == 1
    assert len(one.waits) == 1 and world.news.is_set()


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (RateLimited("slower", retry_after_s=7.0), [7.0]),
        (RateLimited("much slower", retry_after_s=3600.0), [60.0]),
        (MarketUnreachable("no answer"), [5.0]),
        (LostRace("changed"), []),
    ],
)
async def test_what_passes_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, waits: list[float]
) -> None:
    """Nothing is held, failed or written."""
    one, before = Tried(world, monkeypatch, error), stored(world)
    await one.once()
    assert stored(world) == before
    assert len(one.waits) == len(waits) and (not isinstance(error, RateLimited) or one.waits == waits)


@pytest.mark.parametrize("error", [LinkLost("reset"), AccessDenied("not our key")])
async def test_silence_is_noted_once_and_tried_ever_more_rarely(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Out of contact: one event, pauses that grow to half a minute, and no hold."""
    one = Tried(world, monkeypatch, error)
    for _ in range(8):
        await one.once()

    assert one.waits == [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 30.0, 30.0]
    assert one.driver.is_cut_off and stored(world).hold_reason is None
    with world.database.read() as c:
        assert c.exec_driver_sql("SELECT count(*) FROM events WHERE kind = 'box.out_of_contact'").scalar_one() == 1


@pytest.mark.parametrize(
    "error", [Fenced("a newer daemon leads"), OSError(errno.EIO, "input/output error"), ValueError()]
)
async def test_what_is_no_jobs_business_is_raised(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error)):
        await Tried(world, monkeypatch, error).once()
    assert stored(world).hold_reason is None


# -- the supervisor


class Script:
    """Stands in for a driver: raises `errors` one after the other, then ends."""

    job_id = store.JOB

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def run(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


def kept(world: World, monkeypatch: pytest.MonkeyPatch, script: Script) -> Supervisor:
    monkeypatch.setattr(supervising, "CRASH_PAUSE_S", 0.0)
    one = Supervisor(world, Reconciler(world.database, world.operator, world.clock, world.settings.timing))
    one.drivers[store.JOB] = cast(Driver, script)
    one._tasks[store.JOB] = cast("asyncio.Task[None]", None)
    return one


async def test_a_defect_holds_its_job_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver crashes: HELD(INTERNAL) with the error, and it is driven again."""
    script = Script(ValueError("a defect"), ValueError("another"))
    one = kept(world, monkeypatch, script)

    await one._keep(stored(world))

    assert (stored(world).hold_reason, stored(world).hold_detail) == ("INTERNAL", "ValueError: a defect")
    assert not script.errors and not one.drivers and not one._stopped.is_set()


async def test_a_driver_that_cannot_be_made_holds_its_job_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are a link to nowhere, a spec that only a newer version reads: the daemon starts all the same."""
    made: list[Exception | Script] = [FileNotFoundError("model.safetensors"), Script()]

    def make(*_: Any) -> Script:
        if isinstance(found := made.pop(0), Exception):
            raise found
        return found

    monkeypatch.setattr(supervising, "CRASH_PAUSE_S", 0.0)
    monkeypatch.setattr(supervising, "from_canonical", lambda text: None)
    monkeypatch.setattr(supervising, "Driver", make)
    one = Supervisor(world, Reconciler(world.database, world.operator, world.clock, world.settings.timing))

    one.adopt_jobs()
    await one._tasks[store.JOB]

    assert (stored(world).hold_reason, stored(world).hold_detail) == (
        "INTERNAL",
        "FileNotFoundError: model.safetensors",
    )
    assert not made and not one.drivers and not one._tasks


async def test_the_end_comes_with_what_was_waited_for(world: World) -> None:
    """A signal cancels in the very turn in which an operation ends, or a bell rings: nothing goes on for ever."""
    reconciler = Reconciler(world.database, world.operator, world.clock, world.settings.timing)
    looping = asyncio.create_task(Supervisor(world, reconciler)._reconcile_loop())
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(60.0))
    await asyncio.sleep(0.05)

    world.operator.acted.set()
    bell.ring()
    looping.cancel()
    waiting.cancel()
    ended, _ = await asyncio.wait({looping, waiting}, timeout=5.0)

    looping.cancel()
    assert looping in ended and waiting.cancelled()


async def test_a_database_that_cannot_be_used_holds_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk under the database: tried again, nothing decided; not even a crash can be written then."""
    script = Script(StoreError("disk full"), StoreError("disk full"))
    one = kept(world, monkeypatch, script)
    await one._keep(stored(world))
    assert stored(world).hold_reason is None

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(jobs, "hold", full)
    one._hold_crashed(store.JOB, ValueError("a defect"))
    assert stored(world).hold_reason is None


async def test_a_state_that_cannot_be_written_is_told_past_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each time, until it arrives; not that a command was quicker. The loop goes on."""
    full, told, delivered = StoreError("db: disk is full", hint="df -h /state"), [], iter([False, True, True])
    passes: list[Exception | None] = [LostRace("overtaken"), full, full, full, None, full]

    async def notify(title: str, text: str, again: bool) -> bool:
        told.append((text, again))
        return next(delivered)

    async def run_once() -> None:
        world.operator.acted.set()  # the next pass is due at once
        cast(ManualClock, world.clock).advance(3600.0)  # so often it is told, until it arrives
        if (error := passes.pop(0) if passes else asyncio.CancelledError()) is not None:
            raise error

    monkeypatch.setattr(supervising, "CRASH_PAUSE_S", 0.0)
    monkeypatch.setattr(world, "notify", notify)
    one = Supervisor(world, cast(Reconciler, SimpleNamespace(run_once=run_once)))
    world.operator.acted.set()

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await one._reconcile_loop()

    assert [again for _, again in told] == [False, True, False]
    for text, _ in told:
        assert "disk is full" in text and "no limit of cost or time is enforced" in text and "df -h /state" in text


async def test_a_job_that_ended_is_not_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.database.write() as c:
        jobs.move(c, jobs.get(c, store.JOB), JobState.CANCELLED, store.NOW, world.database.epoch)
    kept(world, monkeypatch, Script())._hold_crashed(store.JOB, ValueError("late"))
    assert stored(world).hold_reason is None


async def test_a_newer_leader_ends_this_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fenced in a driver: the whole daemon stops, and says why."""
    script = Script(Fenced("epoch 2"))
    one = kept(world, monkeypatch, script)
    await one._keep(stored(world))
    assert one._stopped.is_set() and isinstance(one._fenced, Fenced)


def test_one_daemon_holds_the_lock(tmp_path: Path) -> None:
    """A second one is refused and told who has it; when that has ended, it may."""
    lock = tmp_path / "state" / "lock"
    first = hold_lock(lock)
    with pytest.raises(Refused, match="another jobd") as refused:
        hold_lock(lock)
    assert refused.value.hint == "jobctl down"
    first.close()
    hold_lock(lock).close()
