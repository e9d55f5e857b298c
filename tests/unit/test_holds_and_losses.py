"""A hold never overrides what a person said meanwhile, and a model that was lost from the disk permits nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest
from desk import Counter
from store import MANIFEST, NOW, start_stage

from daemon.artifacts.receipt import ReceiptFile
from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.records import Kind, Lease, LeaseState, Wish
from daemon.errors import LostRace
from daemon.store import artifacts, downloads, jobs
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
