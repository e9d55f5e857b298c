"""The acts on a stage: started under its nonce, watched, stopped."""

from __future__ import annotations

import os

from sqlalchemy import Connection

from daemon.control import reporters
from daemon.control.acting import Acting
from daemon.control.watch import end_of, look
from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import Trigger
from daemon.domain.machine import fire
from daemon.domain.records import Kind, OpState, StageRun
from daemon.domain.snapshot import Snapshot
from daemon.errors import AccessDenied, BoxError, HostKeyChanged, RemoteFailed
from daemon.store import jobs, operations, reports, stages
from remote_payload.contract import Done, Exit, dump

STOP_LOOKS = 60  # a second apart, before the plan is asked again
LOOK_S = 2.0  # at least, between two looks: each starts a process on the box
START = {"SFT": Trigger.START_SFT, "DPO": Trigger.START_DPO, "GGUF": Trigger.START_GGUF}


async def start_stage(a: Acting, s: Snapshot, action: actions.StartStage) -> None:
    """Started under its nonce; the box makes a second start of the same nonce a no-op."""
    w, run, lease = a.world, action.run, action.lease
    now = w.clock.wall_ms()
    with w.database.write() as c:
        operation = operations.intend(
            c,
            Kind.STAGE_START,
            now,
            w.database.epoch,
            {"nonce": run.nonce},
            job_id=a.job_id,
            lease_id=lease.id,
            instance_id=lease.instance_id,
            nonce=run.nonce,
            stage=run.stage,
        )
    w.operator.sent(operation)
    try:
        status = await (await a.link.to(lease)).start_stage(run.nonce, reporters.key(a.spec, os.environ))
    except BoxError as error:
        # Only a box that never took the command certainly started nothing: any other end may come after the start.
        never_told = isinstance(error, AccessDenied | HostKeyChanged)
        state = OpState.REFUSED if never_told else OpState.UNKNOWN
        with w.database.write() as c:
            operations.set_state(c, operation, state, w.clock.wall_ms(), error=str(error)[:500])
        if isinstance(error, RemoteFailed) and error.exit_code_remote == Exit.BAD_CONFIG:
            why = f"instance {lease.instance_id} was prepared for another attempt than this database knows"
            return a.hold(s, HoldReason.RESTORED, f"{why}: jobctl retry {a.job_id} begins one that both know")
        raise
    with w.database.write() as c:
        operations.store_reply(c, operation, None, dump(status))
        for op in operations.of_job(c, a.job_id):
            if op.kind is Kind.STAGE_START and op.nonce == run.nonce and op.state in (OpState.SENT, OpState.UNKNOWN):
                operations.set_state(c, op.id, OpState.DONE, w.clock.wall_ms())
        stages.mark_started(c, run, w.clock.wall_ms())
        _follow(a, c, s, run)


def _follow(a: Acting, c: Connection, s: Snapshot, run: StageRun) -> None:
    """Move to the state of `run`, through those of stages kept from an earlier attempt: each was started once."""
    names = [each.stage for each in s.stages]
    passed = names.index(s.job.state) + 1 if s.job.state in names else 0
    job = s.job  # as it was decided on: a command that ran meanwhile wins
    for name in names[passed : names.index(run.stage) + 1]:
        to = fire(job.state, START[name], a.facts(s))
        jobs.move(c, job, to, a.world.clock.wall_ms(), a.world.database.epoch)
        job = jobs.get(c, a.job_id)


async def watch(a: Acting, s: Snapshot, action: actions.Watch) -> None:
    w = a.world
    log_file = w.job_folder(a.job_id) / "log.txt"
    box = await a.link.to(action.lease)
    seen = await look(box, s.job, action.run, w.database, w.clock, log_file)
    a.mirroring.follow(box, s.stages, s.report)
    a.rebuilding.follow(s, action.lease)
    known, a.memory.failure = a.memory.failure, (action.run.nonce, seen.failure) if seen.failure else None
    if not seen.ended:
        a.memory.looked_ms = w.clock.wall_ms()
    learned = seen.ended or a.memory.failure != known
    if not learned:  # a failure that is known is no reason to look again at once
        await a.bell.wait(max(w.settings.timing.poll_every, LOOK_S))


async def stop_stages(a: Acting, s: Snapshot, action: actions.StopStages) -> None:
    """Until nothing runs there. A stage that ended just before is over, and need not be asked for again."""
    box = await a.link.to(action.lease)
    await box.stop_stages()
    for _ in range(STOP_LOOKS):
        if not (await box.status()).alive:
            break
        await a.bell.wait(1.0)
    else:
        return  # the plan decides how long it is asked
    end = await end_of(box, s.stage) if s.stage is not None else None
    with a.world.database.write() as c:
        now = a.world.clock.wall_ms()
        reports.put(c, a.job_id, s.job.attempt, alive=0, seen_at=now)
        if s.stage is not None and isinstance(end, Done):
            stages.mark_done(c, s.stage, dump(end), now)
