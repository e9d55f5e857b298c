"""What is done about stages, and what stays known when the box does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from desk import Counter
from store import NOW

from daemon.box.box import BoxStatus
from daemon.control.act_stage import STOP_LOOKS
from daemon.control.permits import NoPermit
from daemon.domain.actions import StartStage, StopStages
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.records import Kind, OpState, StageRun
from daemon.errors import AccessDenied, HostKeyChanged, LinkLost, RemoteFailed
from daemon.store import jobs, stages
from remote_payload.contract import Done, Exit, Phase, Stage, Status


@dataclass
class Box:
    """`says`: what each start of a stage raises in turn, None for one that is taken. `runs_on`: looks that find the
    runner alive after it was told to stop."""

    says: list[Exception | None] = field(default_factory=list)
    runs_on: int = 0
    looks: int = 0
    end: Done | None = None

    def allow_silence(self, seconds: float) -> None:
        return None

    async def start_stage(self, nonce: str, env: Any) -> Status:
        if (error := self.says.pop(0)) is not None:
            raise error
        return Status("job", 1, Phase.RUNNING, Stage.SFT, nonce, 0.0, "boot", 1)

    async def stop_stages(self) -> None:
        return None

    async def stage_end(self, nonce: str) -> Done | None:
        return self.end

    async def status(self) -> BoxStatus:
        self.looks += 1
        return BoxStatus(self.looks <= self.runs_on, None, "boot", 0, 0)


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    """Its job is PROVISIONED, on a machine."""
    found = await Counter.open(tmp_path)
    found.machine()
    move(found, JobState.PROVISIONED)
    yield found
    found.desk.database.close()


def move(counter: Counter, to: JobState) -> None:
    epoch = counter.desk.database.epoch
    counter.desk.write(lambda c: jobs.move(c, jobs.get(c, counter.job.id), to, NOW, epoch))


def meets(counter: Counter, box: Box) -> None:
    counter.desk.world.connect = lambda address, count: box  # type: ignore[assignment, return-value]


async def start(counter: Counter, run: StageRun) -> None:
    lease = counter.look().lease
    assert lease is not None
    await counter.do(StartStage(lease, run))


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (AccessDenied("our key is not accepted"), OpState.REFUSED),
        (HostKeyChanged("not the pinned one"), OpState.REFUSED),
        (LinkLost("reset"), OpState.UNKNOWN),
        (RemoteFailed("run start ended with code 1", exit_code_remote=1), OpState.UNKNOWN),
    ],
)
async def test_a_start_without_an_answer_may_have_begun_the_stage(
    counter: Counter, error: Exception, left: OpState
) -> None:
    """Unless the command was never taken: a machine on which training may run must not count as unused."""
    meets(counter, Box([error]))

    with pytest.raises(type(error)):
        await start(counter, counter.look().stages[0])

    s = counter.look()
    assert [op.state for op in counter.operations(Kind.STAGE_START)] == [left]
    assert s.lease is not None and s.work_started(s.lease) is (left is OpState.UNKNOWN)
    assert s.job.state is JobState.PROVISIONED
    destroying = counter.desk.world.operator.destroy(s.job, s.lease, "nothing was started on it")
    with pytest.raises(NoPermit) if left is OpState.UNKNOWN else nullcontext():
        await destroying
    assert bool(counter.desk.market.asked) is (left is OpState.REFUSED)


async def test_a_machine_of_a_newer_attempt_than_the_database_holds_the_job(counter: Counter) -> None:
    """After a restore: its job.json knows no stage of this attempt. What works there goes on, and so does retry."""
    refused = RemoteFailed("run start ended with code 10", exit_code_remote=Exit.BAD_CONFIG)
    meets(counter, Box([refused]))

    await start(counter, counter.look().stages[0])

    job = counter.look().job
    assert job.hold_reason is HoldReason.RESTORED and f"jobctl retry {job.id}" in (job.hold_detail or "")


async def test_the_answer_to_a_repeated_start_settles_those_before_it(counter: Counter) -> None:
    """The box makes a second start of a nonce a no-op, so the first one was done as well."""
    meets(counter, Box([LinkLost("reset"), None]))
    run = counter.look().stages[0]
    with pytest.raises(LinkLost):
        await start(counter, run)

    await start(counter, run)

    assert [op.state for op in counter.operations(Kind.STAGE_START)] == [OpState.DONE, OpState.DONE]
    assert counter.look().job.state is JobState.SFT


async def test_a_start_passes_the_states_of_stages_that_are_kept(counter: Counter) -> None:
    """After a retry from GGUF, SFT is not run again; the job goes through its state all the same."""
    sft, gguf = counter.look().stages
    counter.desk.write(lambda c: (stages.mark_started(c, sft, NOW), stages.mark_done(c, sft, "{}", NOW)))
    meets(counter, Box([None]))

    await start(counter, gguf)

    with counter.desk.database.read() as c:
        moves = c.exec_driver_sql("SELECT body ->> 'to' FROM events WHERE kind = 'job.moved' ORDER BY id").scalars()
        assert list(moves) == ["PROVISIONED", "SFT", "GGUF"]


@pytest.mark.parametrize(("runs_on", "stopped"), [(0, True), (3, True), (STOP_LOOKS, False)])
async def test_a_runner_is_stopped_when_it_has_ended(counter: Counter, runs_on: int, stopped: bool) -> None:
    """It writes a checkpoint first. One that does not end in a minute is not called stopped: the plan asks again."""
    box = Box(runs_on=runs_on)
    meets(counter, box)
    lease = counter.look().lease
    assert lease is not None

    await counter.do(StopStages(lease))

    report = counter.look().report
    assert (report is not None and not report.alive) is stopped
    assert box.looks == (runs_on + 1 if stopped else STOP_LOOKS)


async def test_a_stage_that_ended_before_it_was_stopped_is_over(counter: Counter) -> None:
    """In a hold nobody looks again, and a limit that is spent lets nobody ask."""
    s = counter.look()
    assert s.lease is not None and s.stage is not None
    meets(counter, Box(end=Done(Stage(s.stage.stage), s.stage.nonce, 1, [], 60.0)))

    await counter.do(StopStages(s.lease))

    assert counter.look().stages[0].done_json is not None
