"""What is asked before anything is spent, and what a person may say to a job: `submit`, `plan`, `offers`, `retry`..."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk import SPEC, Desk
from scripted_market import OFFER, instance
from sqlalchemy import Connection
from store import JOB, NOW, add_job, add_lease, destroy, start_stage

from daemon.artifacts import workstation
from daemon.artifacts.workstation import Objection
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.records import Kind, LeaseState, OpState, Wish
from daemon.domain.spec import JobSpec
from daemon.errors import (
    CredentialsRefused,
    HomeportError,
    MarketUnreachable,
    NoSuchJob,
    Refused,
    SpecError,
    WorkstationUnfit,
)
from daemon.store import jobs, leases, operations, stages


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.database.close()


# Before anything is spent


async def test_one_request_is_one_job(desk: Desk) -> None:
    """Asked twice because the first answer was lost: one row, and its driver is told both times."""
    first = await desk.submit()

    again = await desk.commands.submit(SPEC, "job.yaml", str(desk.folder), "r1")

    assert again == {"job": first.id, "name": "bot", "created": False, "plan": None}
    assert desk.told == [first.id, first.id]
    assert (first.state, first.attempt) == (JobState.QUEUED, 1)
    with desk.database.read() as c:
        assert [run.stage for run in stages.of_attempt(c, first)] == ["SFT", "GGUF"]


REFUSED = [
    (SPEC.replace("max_steps: 3", "max_steps: -3"), SpecError, "job.yaml:4: sft.max_steps"),
    (SPEC + "integration: {tag: T, sft_rows: 41}\n", SpecError, "integration.sft_rows: 41 expected, the data has 40"),
    (SPEC + "start_from: nowhere\n", NoSuchJob, "nowhere"),
    (SPEC + "start_from: ~nobody-of-this-name/x\n", SpecError, "~nobody-of-this-name/x"),
    (SPEC.replace("bot", "taken"), Refused, "an unfinished job is already called taken"),
]


@pytest.mark.parametrize(("text", "error", "says"), REFUSED, ids=[row[2] for row in REFUSED])
async def test_a_submit_that_is_refused_stores_nothing(
    desk: Desk, text: str, error: type[Exception], says: str
) -> None:
    unfinished = JobSpec.model_validate({"version": 1, "name": "taken", "model": "any/m", "sft": {"data": "-"}})
    desk.write(lambda c: add_job(c, JOB, name="taken", spec_json=unfinished.canonical_json()))

    with pytest.raises(error, match=says.replace(".", r"\.")):
        await desk.submit(text, "r2")

    with desk.database.read() as c:
        assert jobs.ids(c) == {JOB}


async def test_data_that_cannot_be_trained_is_refused_line_by_line(desk: Desk) -> None:
    (desk.folder / "sft.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 7}\n')

    with pytest.raises(SpecError, match=r"sft\.jsonl:2:") as refused:
        await desk.submit()

    assert refused.value.hint == "jobctl data-check job.yaml"


async def test_a_computer_that_cannot_take_the_model_is_told_before_renting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By submit as an error with its mend, by plan as a problem beside the rest."""

    async def full(*_: Any, **__: Any) -> list[Objection]:
        return [Objection("1 GB free, 9 GB needed", "free 8 GB")]

    monkeypatch.setattr(workstation, "check", full)

    with pytest.raises(WorkstationUnfit, match="9 GB needed") as refused:
        await desk.submit()
    found = await desk.commands.plan(SPEC, "job.yaml", str(desk.folder))

    assert refused.value.hint == "free 8 GB"
    assert found["problems"] == ["1 GB free, 9 GB needed (try: free 8 GB)"]


async def test_a_plan_says_what_a_job_would_do_and_cost(desk: Desk) -> None:
    """Rows, steps and what the best offer makes of them; an unfinished job keeps its room. Nothing is spent."""
    await desk.submit()

    found = await desk.commands.plan(
        SPEC + "speed: plain\nlimits: {price: 4.00, cost: 50.00, time: 30h}\n", "job.yaml", str(desk.folder)
    )

    assert (found["rows"], found["steps"]) == ({"SFT": 40}, {"SFT": 2})
    assert [(offer["offer"], offer["price_per_hour"]) for offer in found["offers"]] == [(OFFER.id, "2.00")]
    assert found["limits"] == {"price": "$4.00/h", "cost": "$50.00", "time": "30h", "hold": "$2.00"}
    assert found["hours"] > 0 and float(found["cost"]) > 0
    assert any(note.startswith("speed: plain") for note in found["notes"])
    assert any(note.startswith("verify: {level: hash}") for note in found["notes"])
    assert desk.market.asked == []


async def test_a_market_that_cannot_be_asked_is_a_note_of_the_plan(desk: Desk) -> None:
    desk.market.answers["account"] = CredentialsRefused("no such key")

    found = await desk.commands.plan(SPEC, "job.yaml", str(desk.folder))

    assert "the market could not be asked: no such key" in found["notes"]
    assert (found["offers"], found["hours"], found["cost"]) == ([], None, None)


async def test_offers_without_a_job(desk: Desk) -> None:
    """Each is taken, or shown with what speaks against it."""
    fits = await desk.commands.offers({"count": 1})
    dear = await desk.commands.offers({"max_price": "1.00"})

    assert [offer["offer"] for offer in fits["offers"]] == [OFFER.id]
    assert dear["offers"] == [] and dear["rejected"][0]["reason"]


async def test_what_only_the_daemon_can_check(desk: Desk) -> None:
    """Credit against what bills, charges, a listing, and machines with our label that belong to no job."""
    assert [check["status"] for check in (await desk.commands.doctor())["checks"]] == ["PASS", "PASS", "PASS"]

    desk.write(lambda c: leases.add(c, None, 7, "hp-x-y-z", LeaseState.LIVE, NOW, price_per_hour=50_000_000))
    desk.write(lambda c: leases.change(c, leases.by_instance(c, 7).id, status="running"))  # type: ignore[union-attr]
    short, _, _, orphan = (await desk.commands.doctor())["checks"]
    desk.market.answers["account"] = CredentialsRefused("no such key", hint="jobctl doctor")
    refused, listing, _ = (await desk.commands.doctor())["checks"]

    assert short["status"] == "WARN" and "top up" in short["fix"]
    assert (orphan["status"], orphan["fix"]) == ("FAIL", "jobctl adopt 7 JOB.yaml")
    assert (refused["status"], refused["fix"], listing["status"]) == ("FAIL", "jobctl doctor", "FAIL")


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (CredentialsRefused("Key lacks permission.", hint="jobctl doctor"), "let the key read billing (billing_read)"),
        (MarketUnreachable("charges: timed out"), ""),
    ],
    ids=["a key without the right", "a market that is slow"],
)
async def test_charges_that_cannot_be_read_are_told_of_before_a_rental_is_in_doubt(
    desk: Desk, error: HomeportError, fix: str
) -> None:
    desk.market.answers["charges"] = error

    account, charges, listing = (await desk.commands.doctor())["checks"]

    assert (account["status"], charges["status"], listing["status"]) == ("PASS", "WARN", "PASS")
    assert charges["detail"].startswith(error.message.rstrip(".")) and charges["fix"] == fix


# What a person says


def work(desk: Desk, state: LeaseState = LeaseState.LIVE) -> int:
    """A machine on which a stage was started; returns its lease."""

    def made(c: Any) -> int:
        lease = add_lease(c, state=state)
        start_stage(c, lease)
        return lease

    desk.write(lambda c: add_job(c))
    return int(desk.write(made))


async def test_a_model_is_given_up_by_its_machines_id_alone(desk: Desk) -> None:
    """What is lost is said; another id is refused with the command, the right one is a wish with a token."""
    work(desk)

    terms = await desk.commands.abandon_terms(JOB)
    with pytest.raises(Refused, match="destroys instance 77") as refused:
        await desk.commands.abandon(JOB, "me", None)
    with pytest.raises(Refused) as discarded:
        await desk.commands.cancel(JOB, "me", True, 78)
    answer = await desk.commands.abandon(JOB, "me", 77)

    assert terms["instance"] == 77 and "the machine 77" in terms["lost"][0]
    assert refused.value.hint == f"type its id: jobctl abandon {JOB} --confirm 77"
    assert discarded.value.hint == f"type its id: jobctl cancel --discard {JOB} --confirm 77"
    assert "abandon asked" in answer["message"] and desk.job(JOB).wish is Wish.ABANDON


async def test_of_two_machines_the_one_is_named_whose_id_is_wanted(desk: Desk) -> None:
    """`jobctl` takes no other id than the one it is told, so the lost one of before must not stand in its place."""
    desk.write(lambda c: add_job(c))
    desk.write(lambda c: add_lease(c, instance=70, state=LeaseState.LOST))
    unused = desk.write(lambda c: add_lease(c, instance=71, state=LeaseState.LOST))
    live = desk.write(lambda c: add_lease(c, instance=72))
    lost = desk.write(lambda c: leases.by_instance(c, 70)).id
    for lease in (lost, live):
        desk.write(lambda c, lease=lease: start_stage(c, lease))

    named = []
    for _ in range(2):
        named.append((await desk.commands.abandon_terms(JOB))["instance"])
        with pytest.raises(Refused, match=f"destroys instance {named[-1]}"):
            await desk.commands.abandon(JOB, "me", None)
        await desk.commands.abandon(JOB, "me", named[-1])

    assert unused and named == [72, 70]


async def test_without_a_machine_nothing_is_lost(desk: Desk) -> None:
    desk.write(lambda c: add_job(c))

    terms = await desk.commands.abandon_terms(JOB)
    await desk.commands.abandon(JOB, "me", None)

    assert (terms["instance"], terms["lost"]) == (None, ["nothing: no machine is rented"])
    assert desk.job(JOB).wish is Wish.ABANDON


@pytest.mark.parametrize("state", [OpState.SENT, OpState.UNKNOWN])
async def test_a_machine_that_was_asked_for_is_named(desk: Desk, state: OpState) -> None:
    """The market has not answered: whether a machine bills is not known, so not that none does."""

    def asked(c: Connection) -> None:
        add_job(c)
        create = operations.intend(c, Kind.CREATE, NOW, 1, {}, job_id=JOB, label="hp-test")
        for step in dict.fromkeys((OpState.SENT, state)):
            operations.set_state(c, create, step, NOW)

    desk.write(asked)

    terms = await desk.commands.abandon_terms(JOB)

    assert terms["instance"] is None
    assert len(terms["lost"]) == 1 and "asked for" in terms["lost"][0] and "no machine" not in terms["lost"][0]


async def test_a_machine_is_written_off_by_its_id(desk: Desk) -> None:
    """Its job's driver is told; a machine that is not held has nothing to write off."""
    work(desk)

    with pytest.raises(Refused, match="may go on billing"):
        await desk.commands.write_off(77, "me", None)
    answer = await desk.commands.write_off(77, "me", 77)
    with pytest.raises(NoSuchJob):
        await desk.commands.write_off(77, "me", 77)

    assert (answer["job"], desk.told) == (JOB, [JOB])
    assert [lease.state for lease in desk.leases(JOB)] == [LeaseState.WRITTEN_OFF]
    desk.write(lambda c: leases.add(c, None, 8, "hp-x-y-z", LeaseState.LIVE, NOW))
    assert (await desk.commands.write_off(8, "me", 8))["job"] is None and desk.told == [JOB]


async def test_a_retry_from_a_stage_leaves_the_ones_before_it_their_checkpoints(desk: Desk) -> None:
    """SFT was not finished: it goes on, and only what was named and what follows begins afresh."""
    desk.write(lambda c: add_job(c))
    desk.write(lambda c: jobs.move(c, jobs.get(c, JOB), JobState.PROVISIONED, NOW, 1))
    desk.write(lambda c: jobs.move(c, jobs.get(c, JOB), JobState.SFT, NOW, 1))

    await desk.commands.retry(JOB, "me", "dpo")

    with desk.database.read() as c:
        runs = stages.of_attempt(c, jobs.get(c, JOB))
    assert [(run.stage, run.fresh) for run in runs] == [("SFT", 0), ("DPO", 1), ("GGUF", 1)]


async def test_a_retry_keeps_what_is_finished(desk: Desk) -> None:
    """On its machine; from a stage on it begins afresh. What is no stage, or no state to retry in, is refused."""
    work(desk)
    with pytest.raises(Refused, match="QUEUED: nothing to retry"):
        await desk.commands.retry(JOB, "me", None)

    def trained(c: Any) -> None:
        for run in stages.of_attempt(c, jobs.get(c, JOB))[:2]:
            stages.mark_started(c, run, NOW)
            stages.mark_done(c, run, "{}", NOW)
        for state in (JobState.PROVISIONED, JobState.SFT, JobState.DPO, JobState.GGUF):
            jobs.move(c, jobs.get(c, JOB), state, NOW, desk.database.epoch)

    desk.write(trained)
    with pytest.raises(Refused, match="'merge' is not a stage") as refused:
        await desk.commands.retry(JOB, "me", "merge")
    assert refused.value.hint == "--from sft|dpo|gguf"

    await desk.commands.retry(JOB, "me", None)
    with desk.database.read() as c:
        kept = [bool(run.done_at) for run in stages.of_attempt(c, jobs.get(c, JOB))]
    assert (kept, desk.job(JOB).attempt, desk.job(JOB).state) == ([True, True, False], 2, JobState.QUEUED)


async def test_a_job_that_ended_is_steered_no_more(desk: Desk) -> None:
    desk.write(lambda c: add_job(c))
    desk.write(lambda c: jobs.move(c, jobs.get(c, JOB), JobState.FAILED, NOW, desk.database.epoch))

    for verb, *given in (("hold",), ("resume",), ("cancel", False), ("abandon", None), ("retry", None)):
        with pytest.raises(Refused, match="is already FAILED"):
            await getattr(desk.commands, verb)(JOB, "me", *given)
    with pytest.raises(Refused, match="is already FAILED"):
        await desk.commands.abandon_terms(JOB)


async def test_holds_are_begun_and_ended_by_name(desk: Desk) -> None:
    """A hold that is none cannot be ended, nor one for a budget that is spent; accept is for a hold that asks."""
    desk.write(lambda c: add_job(c))
    with pytest.raises(Refused, match="is not held"):
        await desk.commands.resume(JOB, "me")
    with pytest.raises(Refused, match="does not wait to be accepted"):
        await desk.commands.accept(JOB, "me")

    held = await desk.commands.hold(JOB, "me")
    assert "is held" in held["message"] and desk.job(JOB).hold_reason is HoldReason.BY_PERSON
    await desk.commands.resume(JOB, "me")
    desk.write(lambda c: jobs.hold(c, jobs.get(c, JOB), HoldReason.BUDGET, "spent", NOW, desk.database.epoch))
    with pytest.raises(Refused, match=r"limits\.cost of job abc123 is spent") as refused:
        await desk.commands.resume(JOB, "me")
    assert refused.value.hint == f"jobctl cancel {JOB}"


async def test_yes_to_a_verified_model_lets_its_machine_go(desk: Desk) -> None:
    desk.write(lambda c: add_job(c))
    desk.write(lambda c: jobs.hold(c, jobs.get(c, JOB), HoldReason.ASK_DESTROY, "good?", NOW, desk.database.epoch))

    await desk.commands.accept(JOB, "me")

    assert desk.job(JOB).hold_reason is None


async def test_a_token_that_the_database_refuses_is_a_refusal(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trigger objects to is told in a line, and nothing of the command is stored."""
    lease = work(desk)

    def started_and_destroyed(c: Any, *_: Any, **__: Any) -> None:
        destroy(c, lease, "unused")  # a stage was started on it

    monkeypatch.setattr(jobs, "wish", started_and_destroyed)

    with pytest.raises(Refused, match="not possible now"):
        await desk.commands.cancel(JOB, "me", False)

    with desk.database.read() as c:
        assert [op.kind.value for op in operations.of_lease(c, lease)].count("destroy") == 0


async def test_after_its_machine_vanished_a_job_begins_on_another(desk: Desk) -> None:
    """What is finished and mirrored here is kept: without a mirror, nothing."""
    lease = work(desk)
    desk.write(lambda c: leases.set_state(c, leases.get(c, lease), LeaseState.GONE, NOW, why="vanished"))
    desk.write(lambda c: jobs.hold(c, jobs.get(c, JOB), HoldReason.GONE, "vanished", NOW, desk.database.epoch))

    await desk.commands.resume(JOB, "me")

    job = desk.job(JOB)
    assert (job.attempt, job.hold_reason, job.state) == (2, None, JobState.QUEUED)


async def test_files_by_hand_are_asked_of_the_commands(desk: Desk) -> None:
    """A job without a machine, an instance of nobody, a number that no transfer has: each is refused in words."""
    desk.write(lambda c: add_job(c))
    desk.market.instances = [replace(instance(9), actual_status="exited")]

    with pytest.raises(Refused, match="has no whole checkpoint, on its machine or here; there are: none"):
        await desk.commands.pull(JOB, "latest", "/tmp/x")
    desk.write(lambda c: add_lease(c, status="exited"))
    with pytest.raises(Refused, match="there are: none; its machine is stopped and was not asked"):
        await desk.commands.pull(JOB, "latest", "/tmp/x")
    with pytest.raises(Refused, match="expected latest or a step"):
        await desk.commands.pull(JOB, "newest", "/tmp/x")
    with pytest.raises(NoSuchJob, match="no instance 8"):
        await desk.commands.fetch(8, "*", "/tmp/x", None)
    with pytest.raises(Refused, match="instance 9 is exited"):
        await desk.commands.fetch(9, "*", "/tmp/x", None)
    with pytest.raises(NoSuchJob, match="no transfer 3"):
        await desk.commands.transfer(3)
