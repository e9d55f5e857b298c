"""What a hold rests on: what a person said, what came in which order, what was charged, what lies on the disk."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest
from desk import SPEC, Counter
from store import MANIFEST, NOW, start_stage

from daemon.artifacts.receipt import ReceiptFile
from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.market import Charge
from daemon.domain.money import MICRO
from daemon.domain.records import Kind, Lease, LeaseState, OpState, Wish
from daemon.errors import LostRace, MarketUnreachable
from daemon.store import artifacts, downloads, events, jobs, operations, stages
from daemon.store.downloads import DurableChunks


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    found = await Counter.open(tmp_path)
    yield found
    found.desk.database.close()


async def test_a_command_wins_over_a_hold_decided_before_it(counter: Counter) -> None:
    """The person has cancelled since the look that the hold was decided on: the hold is not put over their wish."""
    counter.machine()
    before = counter.look()
    await counter.desk.commands.cancel(counter.job.id, discard=False, by="person")

    with pytest.raises(LostRace):
        counter.driver.acting.hold(before, HoldReason.TRANSFER_FAILED, "three wrong chunks")

    assert counter.held is None and counter.look().job.wish is Wish.CANCEL


async def test_our_own_bookkeeping_is_nobodys_word(counter: Counter) -> None:
    """The row's version alone moved on: the hold is put."""
    before = counter.look()
    epoch = counter.desk.database.epoch
    counter.desk.write(lambda c: jobs.change(c, before.job, NOW, epoch, manifest_sha256=MANIFEST))

    counter.driver.acting.hold(before, HoldReason.TRANSFER_FAILED, "three wrong chunks")

    assert counter.held is HoldReason.TRANSFER_FAILED


@pytest.mark.parametrize("back_ms", [0, 3_600_000])
async def test_what_came_after_what_is_told_by_the_order_of_events(counter: Counter, back_ms: int) -> None:
    """Saved and accepted in one hold, then the clock is set back: in the next hold neither was done yet."""
    database, clock, job = counter.desk.database, counter.desk.clock, counter.job.id

    def seen() -> tuple[bool, bool]:
        s = counter.look()
        return s.rescued, s.accepted

    def write(*kinds: str) -> None:
        clock.wall += 1000
        with database.write() as c:
            now, epoch = clock.wall_ms(), database.epoch
            for kind in kinds:
                row = jobs.get(c, job)
                if kind == "held":
                    jobs.hold(c, row, HoldReason.ASK_DESTROY, "", now, epoch)
                elif kind == "released":
                    jobs.release(c, row, now, epoch, by="me")
                elif kind == "moved":
                    jobs.move(c, row, JobState.PROVISIONED, now, epoch)
                else:
                    events.add(c, "job.saved", now, job=job)

    assert seen() == (False, False)
    write("held", "saved")
    assert seen() == (True, False)
    write("released")
    assert seen() == (True, True)
    clock.wall -= back_ms
    write("moved", "held")
    assert seen() == (False, False)


@pytest.mark.parametrize(
    ("charged", "held"), [(2 * MICRO, None), (9 * MICRO, HoldReason.BUDGET), (None, HoldReason.BUDGET)]
)
async def test_a_night_asleep_is_not_the_budget(tmp_path: Path, charged: int | None, held: HoldReason | None) -> None:
    """Counted as if it had run for eight hours: the market is asked what it charged before the job is held for it."""
    counter = await Counter.open(tmp_path, SPEC + "limits: {cost: $10}\n")
    market, clock = counter.desk.market, counter.desk.clock
    lease = counter.machine(price_per_hour=2 * MICRO, status="running")
    began, clock.wall = clock.wall_ms(), clock.wall_ms() + 8 * 3_600_000
    if charged is None:
        market.answers["charges"] = MarketUnreachable("no network yet")
    else:
        market.billed = [Charge(lease.instance_id, None, charged, began, clock.wall_ms())]
    assert counter.look().cost == 16 * MICRO

    await counter.do(actions.HoldJob(HoldReason.BUDGET))

    assert counter.held is held
    assert counter.look().cost == (16 * MICRO if charged is None else charged)
    counter.desk.database.close()


@pytest.mark.parametrize(("asked", "held"), [(False, None), (True, HoldReason.BUDGET)])
async def test_a_training_that_ended_unseen_is_asked_first(
    tmp_path: Path, asked: bool, held: HoldReason | None
) -> None:
    """What the market charged is over training's share, and leaves the reserve: only an answer of the box holds it."""
    counter = await Counter.open(tmp_path, SPEC + "limits: {cost: $10}\n")
    market, clock = counter.desk.market, counter.desk.clock
    lease = counter.machine(price_per_hour=2 * MICRO, status="running")
    with counter.desk.database.write() as c:
        nonce = stages.of_attempt(c, counter.job)[0].nonce
        begun = operations.intend(
            c, Kind.STAGE_START, clock.wall_ms(), 1, {}, job_id=counter.job.id, lease_id=lease.id, nonce=nonce
        )
        for state in (OpState.SENT, OpState.DONE):
            operations.set_state(c, begun, state, clock.wall_ms())
    began, clock.wall = clock.wall_ms(), clock.wall_ms() + 8 * 3_600_000
    market.billed = [Charge(lease.instance_id, None, 10 * MICRO - 1000, began, clock.wall_ms())]
    counter.driver.memory.looked_ms = clock.wall_ms() if asked else None

    await counter.do(actions.HoldJob(HoldReason.BUDGET))

    assert counter.held is held
    counter.desk.database.close()


@pytest.mark.parametrize("spoken", [False, True])
async def test_a_hold_in_anothers_place_has_what_that_has_left(counter: Counter, spoken: bool) -> None:
    """A box that fails now in one way and now in another would begin the price limit anew with each of them."""
    counter.machine()
    counter.driver.acting.hold(counter.look(), HoldReason.TRANSFER_FAILED, "three wrong chunks")
    first = counter.look().job.hold_since
    counter.desk.clock.advance(3600)
    if spoken:
        await counter.desk.commands.resume(counter.job.id, by="person")

    counter.driver.acting.hold(counter.look(), HoldReason.HOST_KEY, "another key")

    assert counter.held is HoldReason.HOST_KEY
    assert first is not None and counter.look().job.hold_since == first + (3_600_000 if spoken else 0)


def verified(counter: Counter, content: bytes) -> tuple[Lease, Path]:
    """The job's machine, on which it was trained, and its model: proven, and the machine not yet destroyed."""
    lease, job = counter.machine(), counter.job.id
    folder = counter.desk.folder / f"models/bot/v1-{job}"
    folder.mkdir(parents=True)
    model = folder / "bot-Q8_0.gguf"
    model.write_bytes(content)
    status = model.stat()
    file = ReceiptFile(model.name, len(content), status.st_mtime_ns, status.st_ino, "0" * 64)
    database = counter.desk.database
    DurableChunks(database, job, MANIFEST, counter.desk.clock).load("run/out/bot-Q8_0.gguf", "0" * 64, 10, 4)
    with database.write() as c:
        start_stage(c, lease.id, job=job)
        jobs.change(c, jobs.get(c, job), NOW, database.epoch, manifest_sha256=MANIFEST)
        given = {"folder": str(folder), "files": json.dumps([asdict(file)]), "levels": "[]", "level": "full"}
        artifacts.add_receipt(c, jobs.get(c, job), NOW, **given)
        for state in (JobState.PROVISIONED, JobState.SFT, JobState.GGUF, JobState.DOWNLOADED):
            jobs.move(c, jobs.get(c, job), state, NOW, database.epoch)
        jobs.move(c, jobs.get(c, job), JobState.VERIFIED, NOW, database.epoch, model_dir=str(folder))
    return lease, model


async def test_a_model_that_lies_here_permits_the_destroy(counter: Counter) -> None:
    """What the next test must not come to."""
    lease, _ = verified(counter, b"the model")

    await counter.driver._perform(counter.look(), actions.Destroy(lease, "verified"))

    assert counter.desk.market.asked == [("destroy", 77)]


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_model_lost_after_its_proof_keeps_the_machine(counter: Counter, deleted: bool) -> None:
    """Its machine has the only copy again: nothing is destroyed, the receipt permits nothing any more, the person is
    asked, and what is left of the model is where a download goes on from."""
    lease, model = verified(counter, b"the model")
    if deleted:
        model.unlink()
    else:
        model.write_bytes(b"another!!")

    await counter.driver._perform(counter.look(), actions.Destroy(lease, "verified"))

    s = counter.look()
    assert counter.desk.market.asked == [] and counter.operations(Kind.DESTROY) == []
    assert [each.state for each in s.leases] == [LeaseState.LIVE]
    assert s.receipt is None and s.job.model_dir is None
    assert (s.job.state, s.job.hold_reason) == (JobState.GGUF, HoldReason.ARTIFACT_LOST)
    assert (counter.desk.folder / f"models/.incoming-{counter.job.id}/{model.name}").exists() is not deleted
    with counter.desk.database.read() as c:
        assert not downloads.is_begun(c, counter.job.id, MANIFEST)
