"""What a person may say while something is under way: wishes, holds, and destroys that are out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store import INSTANCE, JOB, MANIFEST, NOW, add_job, add_lease, destroy, opened, start_stage

from daemon.clock import ManualClock
from daemon.control.commands import Commands
from daemon.control.operate import presume_work
from daemon.domain.holds import HOLDS, HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.records import Job, LeaseState, OpState, Wish
from daemon.errors import Refused
from daemon.store import artifacts, events, jobs, leases, operations, stages
from daemon.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
    yield database
    database.close()


def commands(database: Database, **timing: float) -> Commands:
    world = SimpleNamespace(
        database=database,
        clock=ManualClock(),
        mirror_folder=lambda job: database.path.with_name(job),
        settings=SimpleNamespace(timing=SimpleNamespace(**timing)),
    )
    return Commands(world, lambda job: None)  # type: ignore[arg-type]


def job(database: Database) -> Job:
    with database.read() as c:
        return jobs.get(c, JOB)


def hold(database: Database, reason: HoldReason, detail: str = "") -> None:
    with database.write() as c:
        jobs.hold(c, jobs.get(c, JOB), reason, detail, NOW, 1)


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


async def test_a_cancel_outlasts_a_restore(database: Database) -> None:
    """The hold that answered it gives way to that of a restored database: resume from there goes on with the cancel."""
    await commands(database).cancel(JOB, "me", discard=False)
    hold(database, HoldReason.CANCEL_WISH)
    hold(database, HoldReason.RESTORED)

    await commands(database).resume(JOB, "me")

    assert (job(database).wish, job(database).hold_reason) == (Wish.CANCEL, None)


@pytest.mark.parametrize("rents", [True, False])
async def test_after_a_restore_no_stage_is_begun_again_elsewhere(database: Database, rents: bool) -> None:
    """Under its old nonce it may run on a machine that the backup never knew; on the one it knows nothing changes."""
    if not rents:
        with database.write() as c:
            add_lease(c)
    hold(database, HoldReason.RESTORED)

    await commands(database).resume(JOB, "me")

    assert job(database).attempt == (2 if rents else 1)


@pytest.mark.parametrize("there", [True, False])
async def test_without_the_disk_of_what_was_saved_no_attempt_begins(database: Database, there: bool) -> None:
    """A resume after the machine is gone would drop the finished stages that lie on a disk that is not mounted."""
    with database.write() as c:
        events.add(c, "stage.home", NOW, job=JOB, stage="SFT")
    hold(database, HoldReason.GONE)
    if there:
        database.path.with_name(JOB).mkdir()

    with nullcontext() if there else pytest.raises(Refused, match="mkdir"):
        await commands(database).resume(JOB, "me")

    assert job(database).attempt == (2 if there else 1)


async def test_after_a_restore_another_hold_makes_no_difference(database: Database) -> None:
    """A machine that the backup did not know turned up, and the person held the job: its nonces stay in doubt."""
    with database.write() as c:
        unknown = leases.get(c, add_lease(c, state=LeaseState.LOST))
        presume_work(c, unknown, NOW, database.epoch)
    hold(database, HoldReason.BY_PERSON)

    await commands(database).resume(JOB, "me")

    assert job(database).attempt == 2


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


@pytest.mark.parametrize("word", ["hold", "cancel", "resume"])
async def test_another_word_voids_what_was_typed(database: Database, word: str) -> None:
    """A cancel saves what is there: no id that was typed before, for something else, lets the machine go unsaved."""
    with database.write() as c:
        start_stage(c, add_lease(c))
    at = commands(database, token_life=900.0)
    await at.abandon(JOB, "me", INSTANCE)
    if word == "resume":
        hold(database, HoldReason.CREDENTIALS)

    await {
        "hold": lambda: at.hold(JOB, "me"),
        "cancel": lambda: at.cancel(JOB, "me", discard=False),
        "resume": lambda: at.resume(JOB, "me"),
    }[word]()

    with database.read() as c:
        assert artifacts.usable_token(c, jobs.get(c, JOB), INSTANCE, ManualClock().wall_ms()) is None


@pytest.mark.parametrize(("trained", "resumed"), [(0, False), (1, False), (2, True)])
async def test_who_may_resume_from_a_spent_limit(database: Database, trained: int, resumed: bool) -> None:
    """Who has trained, and has only the way home before them. The state may be behind, or ahead, of that."""
    with database.write() as c:
        for run in stages.of_attempt(c, jobs.get(c, JOB))[:trained]:
            stages.mark_done(c, run, "{}", NOW)
        for state in (JobState.PROVISIONED, JobState.SFT, JobState.GGUF)[: 2 if trained == 2 else 3]:
            jobs.move(c, jobs.get(c, JOB), state, NOW, 1)
    hold(database, HoldReason.BUDGET)

    try:
        await commands(database).resume(JOB, "me")
    except Refused:
        assert not resumed

    assert (job(database).hold_reason is None) is resumed


@pytest.mark.parametrize("saved", [False, True])
async def test_a_machine_that_was_never_asked_may_be_asked(database: Database, saved: bool) -> None:
    """It stopped before anything was saved in this hold: the training may be over there, and its model finished."""
    hold(database, HoldReason.BUDGET)
    with database.write() as c:
        add_lease(c, status="exited")
        if saved:
            events.add(c, "job.saved", NOW, job=JOB)

    if saved:
        with pytest.raises(Refused, match="spent"):
            await commands(database).resume(JOB, "me")
    else:
        await commands(database).resume(JOB, "me")

    assert (job(database).hold_reason is HoldReason.BUDGET) is saved


NO_MEMORY = "L5 behaviour: m.gguf: not run: needs 10 GB of memory, 4 GB are free"


def accepted(database: Database) -> dict[str, Any] | None:
    with database.read() as c:
        return artifacts.accepted_level(c, jobs.get(c, JOB))


QUEUED_HOLDS = (HoldReason.INTEGRATION, HoldReason.DATA, HoldReason.TRANSFER_FAILED, HoldReason.DISK_FULL)


@pytest.mark.parametrize("reason", QUEUED_HOLDS)
async def test_what_a_hold_of_a_queued_job_names_is_not_refused(database: Database, reason: HoldReason) -> None:
    """Its first command does what it says, in the state in which no machine is ready yet."""
    hold(database, reason, "why")
    verb = HOLDS[reason].commands[0].split()[1]

    if verb == "cancel":
        await commands(database).cancel(JOB, "ann", False)
    else:
        await getattr(commands(database), verb)(JOB, "ann")

    assert job(database).wish or job(database).hold_reason is None


def test_what_is_submitted_again_is_cancelled_first() -> None:
    """The name is taken while the held job is unfinished, and the same file is the same job without --again."""
    for hold in HOLDS.values():
        if "submit" in hold.advice:
            assert "cancel it, then submit" in hold.advice and "jobctl cancel {job}" in hold.commands
        for command in hold.commands:
            assert "submit" not in command or command.endswith("--again")
    assert [HOLDS[reason].commands[0] for reason in QUEUED_HOLDS[:2]] == ["jobctl cancel {job}"] * 2


NO_BASE = "L3 identity: not run: org/base: the model hub does not answer"


async def test_a_level_that_cannot_run_is_accepted_by_name(database: Database) -> None:
    """The typed name is kept with who typed it, for this artifact set alone, and the job goes on to verify again."""
    with database.write() as c:
        jobs.change(c, jobs.get(c, JOB), NOW, 1, manifest_sha256=MANIFEST)
    hold(database, HoldReason.NOT_VERIFIED, NO_MEMORY)

    await commands(database).accept(JOB, "ann", "L4", JOB)

    found = accepted(database)
    assert found is not None and (found["level"], found["by"]) == ("L4", "ann")
    assert job(database).hold_reason is None
    with database.write() as c:
        jobs.change(c, jobs.get(c, JOB), NOW, 1, manifest_sha256="n" * 64)
    assert accepted(database) is None


@pytest.mark.parametrize(
    ("reason", "detail", "level", "confirm", "says"),
    [
        (HoldReason.VERIFY_FAILED, "L5 behaviour: 0.4 nats", "L4", JOB, "a level that failed is not accepted"),
        (HoldReason.NOT_VERIFIED, "L4 numbers: not run: numpy is not installed", "L4", JOB, "L4 is not reached"),
        (HoldReason.NOT_VERIFIED, NO_BASE, "L3", JOB, "L3 is not reached"),
        (HoldReason.NOT_VERIFIED, NO_MEMORY, "L4", None, "whether the model works is then not known"),
        (HoldReason.NOT_VERIFIED, NO_MEMORY, "L4", "yes", "whether the model works is then not known"),
    ],
)
async def test_what_is_not_accepted(
    database: Database, reason: HoldReason, detail: str, level: str, confirm: str | None, says: str
) -> None:
    """A failure, a level that itself could not run, a name that was not typed: refused, and the job stays held."""
    hold(database, reason, detail)

    with pytest.raises(Refused, match=says) as refused:
        await commands(database).accept(JOB, "ann", level, confirm)

    assert "L2" not in refused.value.hint  # it is never accepted
    assert accepted(database) is None
    assert job(database).hold_reason is reason


async def test_a_lost_machines_destroy_that_does_not_take_refuses_nothing(database: Database) -> None:
    """The machine that works is let go first: what is typed for it is taken, whatever becomes of the other."""
    rented(database, LeaseState.LOST)
    with database.write() as c:
        add_lease(c, instance=78)
    await commands(database).cancel(JOB, "me", discard=False)
    hold(database, HoldReason.CREDENTIALS)

    await commands(database).resume(JOB, "me")

    assert (job(database).wish, job(database).hold_reason) == (Wish.CANCEL, None)
