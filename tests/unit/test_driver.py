"""What the driver makes of a machine that does not let us in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import store
from desk import Desk
from scripted_market import ScriptedMarket

from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control import driver
from daemon.control.driver import Driver
from daemon.control.link import HEARD_BYTES
from daemon.control.operate import Operator
from daemon.control.world import World
from daemon.domain.actions import Action, Download, HoldJob, Wait
from daemon.domain.holds import HoldReason
from daemon.domain.records import Lease
from daemon.domain.spec import JobSpec, from_canonical
from daemon.errors import AccessDenied, BoxError, Fenced, HostKeyChanged, LinkLost, StoreError
from daemon.settings import Paths, Settings
from daemon.store import jobs, leader, leases, reports
from daemon.store.database import Database

SPEC = JobSpec.model_validate({"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}})


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Driver, ScriptedMarket]]:
    """The driver of a job with a proven machine."""
    monkeypatch.setattr(driver, "BACKOFF_S", (0.0,))
    database, clock, market = store.opened(tmp_path), ManualClock(), ScriptedMarket()
    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))
    world = World(
        database, Operator(database, market, clock, settings), clock, settings, *cast(Any, (None, None, verify))
    )
    with database.write() as c:
        store.add_job(c, spec_json=SPEC.canonical_json())
        leases.change(c, store.add_lease(c), host_key="ssh-ed25519 AAAA")
        job = jobs.get(c, store.JOB)
    yield Driver(world, job, SPEC), market
    database.close()


@pytest.mark.parametrize(
    ("error", "attached", "held"),
    [
        (AccessDenied("our key is not accepted"), True, None),
        (LinkLost("connection refused"), False, None),
        (HostKeyChanged("not the pinned one"), False, HoldReason.HOST_KEY),
    ],
    ids=["denied", "lost", "another host"],
)
async def test_who_is_not_let_in(
    driven: tuple[Driver, ScriptedMarket],
    monkeypatch: pytest.MonkeyPatch,
    error: BoxError,
    attached: bool,
    held: HoldReason | None,
) -> None:
    """A refused key is attached again through the market and tried again; only another host's key holds the job."""
    one, market = driven
    seen = one._look()
    assert seen.lease is not None

    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(driver, "act", fail)
    await one._guarded(seen, Wait("for the test"))

    assert (("attach_key", seen.lease.instance_id) in market.asked) is attached
    assert one._look().job.hold_reason is held
    assert one.is_cut_off is (held is None)


async def test_who_was_overtaken_asks_the_market_for_nothing(driven: tuple[Driver, ScriptedMarket]) -> None:
    """A key that is attached leaves no row, so no write would have said that another daemon leads."""
    one, market = driven
    seen = one._look()
    overtaken = Database(one.world.database.path)
    leader.take(overtaken, "machine-1", store.NOW, lambda c, epoch, why: None)
    overtaken.close()

    with pytest.raises(Fenced):
        await one.acting.attach_key(seen)

    assert market.asked == []


async def test_an_earlier_process_lost_contact_and_this_one_has_it(
    driven: tuple[Driver, ScriptedMarket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that goes on after a restart: the person is not told that nobody reaches the machine."""
    world = driven[0].world
    with world.database.write() as c:
        reports.put(c, store.JOB, 1, lost_since=store.NOW - 60_000)
        job = jobs.get(c, store.JOB)
    one = Driver(world, job, SPEC)
    seen = one._look()
    assert seen.lease is not None

    async def works(*_: Any) -> None:
        one.link._box = cast(Any, object())

    monkeypatch.setattr(driver, "act", works)
    await one._guarded(seen, Download(seen.lease))

    with world.database.read() as c:
        report = reports.get(c, store.JOB)
    assert report is not None and report.lost_since is None


@pytest.mark.parametrize(("decided", "ends"), [(HoldJob(HoldReason.BUDGET), True), (Wait("host offline"), False)])
async def test_an_act_without_an_end_ends_with_the_money(
    driven: tuple[Driver, ScriptedMarket], monkeypatch: pytest.MonkeyPatch, decided: Action, ends: bool
) -> None:
    """A box that drips would be downloaded from for ever; whatever else is decided meanwhile waits for its end."""
    one, _ = driven
    seen = one._look()
    assert seen.lease is not None

    async def drips(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(driver, "act", drips)
    monkeypatch.setattr(driver, "plan", lambda s: decided)
    doing = asyncio.create_task(one._perform(seen, Download(seen.lease)))
    await asyncio.sleep(0)
    one.wake()
    done, _ = await asyncio.wait({doing}, timeout=0.2)

    assert bool(done) is ends
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)


async def test_a_store_that_cannot_be_read_ends_no_act(
    driven: tuple[Driver, ScriptedMarket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver meets it when it looks next; who rings must not end by it."""
    one, _ = driven
    one._doing = Download(cast(Lease, one._look().lease))

    def fails() -> None:
        raise StoreError("disk I/O error")

    monkeypatch.setattr(one, "_look", fails)

    one.wake()

    assert not one.bell.interrupted.is_set()


def test_the_reserve_is_that_of_the_machine(driven: tuple[Driver, ScriptedMarket]) -> None:
    """A job without limits.price keeps money for the way home all the same: at what its machine costs now."""
    one, _ = driven
    reserves = []
    for price in (2_000_000, 4_000_000):
        with one.world.database.write() as c:
            leases.change(c, 1, price_per_hour=price, up_per_gb=0)
        reserves.append(one._look().rules.reserve)

    assert one.rules.reserve == 0 < reserves[0]
    assert reserves[1] == pytest.approx(2 * reserves[0], abs=2)


def test_the_box_may_wait_for_what_the_hold_has_left(driven: tuple[Driver, ScriptedMarket]) -> None:
    """A hold and then a sleep cost no more than the hold may."""
    one, _ = driven
    with one.world.database.write() as c:
        leases.change(c, 1, status="running", price_per_hour=2_000_000, created_at=one.world.clock.wall_ms())
    free = one._look()
    assert free.lease is not None
    held_ms = round(free.rules.hold_limit / free.lease.rate * 3_600_000 / 4)
    left = [one.link.silence_limit]
    one.acting.hold(free, HoldReason.BY_PERSON, "for the test")
    cast(ManualClock, one.world.clock).advance(held_ms / 1000)

    one._look()

    limit = free.rules.hold_limit
    assert [*left, one.link.silence_limit] == [limit, pytest.approx(limit * 3 / 4, rel=0.001)]


@pytest.mark.parametrize(
    ("moved", "answered_s", "unseen_s", "silent_s"),
    [(0, 0, 0, 700), (9, 300, 0, 700), (9, 400, 0, 0), (HEARD_BYTES, 0, 0, 0), (0, 0, 91, 0)],
    ids=["a silent box", "it answered in part", "it was well", "a transfer went on meanwhile", "nobody answers us"],
)
async def test_how_long_a_box_is_silent(
    driven: tuple[Driver, ScriptedMarket], moved: int, answered_s: int, unseen_s: int, silent_s: int
) -> None:
    """From the first call that was lost since it was heard, while the market is in reach; what waits for a whole answer
    counts from the first one all the same."""
    one, _ = driven
    clock = cast(ManualClock, one.world.clock)

    async def lost(last_seen: int) -> None:
        lease = cast(Lease, one._look().lease)
        with one.world.database.write() as c:
            leases.change(c, lease.id, last_seen=last_seen)
        await one._out_of_contact(one._look(), LinkLost("refused"))

    await lost(clock.wall_ms())
    clock.advance(700 - answered_s)
    if moved:
        one.link._count(cast(Lease, one._look().lease).id, 0, moved)
    clock.advance(answered_s)
    await lost(clock.wall_ms() - unseen_s * 1000)

    now, memory = clock.wall_ms(), one.memory
    assert (now - (memory.silent_since_ms or 0), now - (memory.link_down_since_ms or 0)) == (silent_s * 1000, 700_000)


@pytest.mark.parametrize(("lost_s", "heard"), [(700, True), (3700, False)])
def test_answers_without_an_end_are_believed_for_an_hour(
    driven: tuple[Driver, ScriptedMarket], lost_s: int, heard: bool
) -> None:
    """A connection that is cut every seven minutes lets no preparation end, and its machine bills."""
    link = driven[0].link
    now = driven[0].world.clock.wall_ms()
    link.answered_ms = now - 420_000

    assert link.heard(now, now - lost_s * 1000) is heard


async def test_a_base_that_was_taken_away_stops_no_driver(tmp_path: Path) -> None:
    """Its weights are links to files that are gone: the job that trains is driven on, and another can be submitted."""
    desk = Desk(tmp_path)
    job = await desk.submit()
    (tmp_path / "base/model.safetensors").symlink_to(tmp_path / "gone")

    Driver(desk.world, job, from_canonical(job.spec_json))

    desk.database.close()
