"""What each action of the plan does, as a table; those of the job itself are here.

Everything an act learns it records before it returns, so a `kill -9` between any two lines ends in the same place.
Errors are not handled here but by the driver, once for all actions.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from daemon.control import act_home, act_machine, act_stage, snapshot
from daemon.control.acting import Acting
from daemon.control.bell import PAUSE_S
from daemon.domain import actions
from daemon.domain.billing import by_charges, is_charged_to_the_end
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.machine import fire
from daemon.domain.market import Charge
from daemon.domain.plan import plan
from daemon.domain.snapshot import Snapshot
from daemon.errors import CredentialsRefused, MarketError
from daemon.store import events, jobs, leases

log = structlog.get_logger()
DAY_MS = 86_400_000


async def act(a: Acting, s: Snapshot, action: actions.Action) -> None:
    """Do `action`, decided on `s`. Raises what its act raises."""
    await TABLE[type(action)](a, s, action)


async def _wait(a: Acting, s: Snapshot, action: actions.Wait) -> None:
    await a.bell.wait(PAUSE_S)


async def _move(a: Acting, s: Snapshot, action: actions.Move) -> None:
    w = a.world
    to = fire(s.job.state, action.trigger, a.facts(s))
    if to.is_terminal:
        await _settle(a, s)
    with w.database.write() as c:
        jobs.move(c, s.job, to, w.clock.wall_ms(), w.database.epoch)
    if to is JobState.DESTROYED:
        await asyncio.to_thread(a.mirroring.forget_checkpoints)
    if to.is_terminal:
        await a.rebuilding.forget()
    log.info("job.moved", job=a.job_id, to=to.value)
    w.news.set()


async def _settle(a: Acting, s: Snapshot) -> None:
    """What the market charged for each machine, beside what we counted; it takes its place once it reaches the end."""
    w = a.world
    charges = await _charges(a, s)
    if charges is None:
        return
    with w.database.write() as c:
        for lease in s.leases:
            amount = sum(charge.amount for charge in charges if charge.instance_id == lease.instance_id)
            if is_charged_to_the_end(lease, charges):
                leases.change(c, lease.id, settled_cost=amount)
            events.add(
                c,
                "cost.settled",
                w.clock.wall_ms(),
                job=a.job_id,
                lease=lease.id,
                charged=amount,
                counted=lease.cost,
            )


async def _hold_job(a: Acting, s: Snapshot, action: actions.HoldJob) -> None:
    if action.reason is HoldReason.BUDGET and not await _is_held_all_the_same(a, s, action):
        return  # it is decided again
    a.hold(s, action.reason, action.detail)


async def _is_held_all_the_same(a: Acting, s: Snapshot, action: actions.HoldJob) -> bool:
    """By the market's own charges too: what we did not see, as in a sleep, is counted in full."""
    w = a.world
    charges = await _charges(a, s)
    if charges is None:
        return True
    now = w.clock.wall_ms()
    with w.database.write() as c:
        for lease in leases.of_job(c, a.job_id):
            leases.recount(c, lease, by_charges(lease, charges, now), now)
    again = plan(snapshot.take(w.database, w.clock, a.job_id, s.rules, a.memory))
    return isinstance(again, actions.HoldJob) and again.reason is action.reason


async def _charges(a: Acting, s: Snapshot) -> list[Charge] | None:
    """What the market took since the day before the job; None when it does not say."""
    try:
        return await a.world.operator.market.charges(s.job.created_at - DAY_MS)
    except (MarketError, CredentialsRefused) as error:
        log.info("cost.uncharged", job=a.job_id, error=str(error))
        return None


TABLE: dict[type[actions.Action], Any] = {
    actions.Wait: _wait,
    actions.Rent: act_machine.rent,
    actions.Prove: act_machine.prove,
    actions.Provision: act_machine.make_ready,
    actions.StartMachine: act_machine.start,
    actions.StopMachine: act_machine.stop,
    actions.StartStage: act_stage.start_stage,
    actions.Watch: act_stage.watch,
    actions.StopStages: act_stage.stop_stages,
    actions.FetchManifest: act_home.fetch_manifest,
    actions.Download: act_home.download,
    actions.Save: act_home.save,
    actions.Verify: act_home.verify,
    actions.Destroy: act_machine.destroy,
    actions.MarkLost: act_machine.mark_lost,
    actions.Move: _move,
    actions.HoldJob: _hold_job,
}
