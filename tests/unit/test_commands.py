"""What a person may say while something is under way: wishes, holds, and destroys that are out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from store import JOB, NOW, add_job, add_lease, destroy, opened

from daemon.clock import ManualClock
from daemon.control.commands import Commands
from daemon.domain.holds import HoldReason
from daemon.domain.records import Job, LeaseState, OpState, Wish
from daemon.errors import Refused
from daemon.store import jobs, operations
from daemon.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
    yield database
    database.close()


def commands(database: Database) -> Commands:
    world = SimpleNamespace(
        database=database, clock=ManualClock(), mirror_folder=lambda job: database.path.with_name(job)
    )
    return Commands(world, lambda job: None)  # type: ignore[arg-type]


def job(database: Database) -> Job:
    with database.read() as c:
        return jobs.get(c, JOB)


def hold(database: Database, reason: HoldReason) -> None:
    with database.write() as c:
        jobs.hold(c, jobs.get(c, JOB), reason, "", NOW, 1)


def rented(database: Database, state: LeaseState) -> None:
    """A machine whose destroy was accepted and is not confirmed."""
    with database.write() as c:
        operation = destroy(c, add_lease(c, state=state), "unused")
        operations.set_state(c, operation, OpState.SENT, NOW)
        operations.set_state(c, operation, OpState.DONE, NOW)


async def test_a_cancel_outlasts_a_hold_for_the_key(database: Database) -> None:
    """The market refuses the key in the middle of a cancel: once that is mended, resume goes on with the cancel."""
    await commands(database).cancel(JOB, "me", discard=False)
    hold(database, HoldReason.CREDENTIALS)

    await commands(database).resume(JOB, "me")

    assert (job(database).wish, job(database).hold_reason) == (Wish.CANCEL, None)


@pytest.mark.parametrize("answer", [HoldReason.BY_PERSON, HoldReason.CANCEL_WISH])
async def test_a_hold_that_answers_a_cancel_ends_it(database: Database, answer: HoldReason) -> None:
    """The person said hold instead, or is asked what to do with outputs: resume goes on with the work."""
    await commands(database).cancel(JOB, "me", discard=False)

    hold(database, answer)

    assert job(database).wish is None


@pytest.mark.parametrize("rents", [True, False])
async def test_after_a_restore_no_stage_is_begun_again_elsewhere(database: Database, rents: bool) -> None:
    """Under its old nonce it may run on a machine that the backup never knew; on the one it knows nothing changes."""
    if not rents:
        with database.write() as c:
            add_lease(c)
    hold(database, HoldReason.RESTORED)

    await commands(database).resume(JOB, "me")

    assert job(database).attempt == (2 if rents else 1)


async def test_a_destroy_that_is_out_is_waited_for(database: Database) -> None:
    """Whatever is said would come too late for the machine."""
    rented(database, LeaseState.LIVE)

    with pytest.raises(Refused):
        await commands(database).hold(JOB, "me")


async def test_the_destroy_of_a_late_machine_stands_in_nobodys_way(database: Database) -> None:
    """The job goes on elsewhere, and may be held there."""
    rented(database, LeaseState.LOST)

    await commands(database).hold(JOB, "me")

    assert job(database).hold_reason is HoldReason.BY_PERSON
