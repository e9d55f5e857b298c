"""What `plan` decides, one row a situation: what is known, and the one thing that has to happen next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from snapshots import (
    NOW,
    RECEIPT,
    REFUSED,
    RULES,
    STARTED,
    TOKEN,
    S,
    job,
    lease,
    op,
    report,
    runs,
    snap,
    starts,
    training,
)

from daemon.domain import actions
from daemon.domain import plan as p
from daemon.domain.holds import HoldReason as H
from daemon.domain.lifecycle import JobState, Trigger
from daemon.domain.market import ON_GPU
from daemon.domain.records import Kind, LeaseState, OpState, Wish
from daemon.domain.snapshot import Snapshot

TRAINED_OUT = "limits.cost minus what the way home needs is spent"
NOT_HOME = "limits.cost is spent and the model is not home"
NO_TIME = "less than twice the time that bringing the model home takes is left"


def coming_home(done: int = 3, *, cost: int = 0, spoken_s: float = 3600, **values: Any) -> Snapshot:
    """In GGUF; of the stages `done` are, and with all three the model is on its way."""
    row = job(JobState.GGUF, manifest_sha256="m", spoken_at=NOW - round(spoken_s * S))
    live = lease(cost=cost, created_at=NOW - 9000 * S)
    started = op(Kind.STAGE_START, nonce="n3", stage="GGUF")
    return training(row=row, live=live, stages=runs(done), operations=(started,), **values)


GONE = lease(state=LeaseState.GONE, gone_at=NOW)
LOST = lease(id=2, instance_id=78, state=LeaseState.LOST)
EARLIER = replace(LOST, status="offline", created_at=NOW - 90_000 * S)
ITS_DESTROY = op(Kind.DESTROY, lease_id=2, instance_id=78, age_s=5)
QUEUED_START = lease(status="stopped", running_ms=9, status_since=NOW - 900 * S)
STOPPED_AGAIN = lease(status="exited", intended="stopped", running_ms=9, status_since=NOW - 5 * S)
HELD = {"hold_since": NOW - 60 * S}
LONG_AGO = job(JobState.SFT, spoken_at=NOW - 40_000 * S)

CASES: dict[str, tuple[Snapshot, type[actions.Action] | actions.Action]] = {
    # the road to a provisioned machine
    "nothing rented": (snap(), actions.Rent),
    "no offers a moment ago": (snap(asked_market_ms=NOW - 10 * S), actions.Wait),
    "no offers a while ago": (snap(asked_market_ms=NOW - 90 * S), actions.Rent),
    "no offers for long": (
        snap(job(spoken_at=0), asked_market_ms=NOW - 90 * S, nothing_fits_since_ms=NOW - 4000 * S), actions.HoldJob,
    ),
    "create unknown": (snap(operations=(op(Kind.CREATE, OpState.UNKNOWN),)), actions.Wait),
    "create unknown, and a wish": (
        snap(job(wish=Wish.CANCEL), operations=(op(Kind.CREATE, OpState.UNKNOWN),)), actions.Wait,
    ),
    "loading": (snap(None, lease(status="loading")), actions.Wait),
    "loading for too long": (snap(None, lease(status="loading", created_at=NOW - 1300 * S)), actions.Destroy),
    "broken host": (snap(None, lease(status="created", status_msg="OCI runtime create failed: x")), actions.Destroy),
    "running, key unknown": (snap(None, lease(host_key=None)), actions.Prove),
    "running, no login for too long": (snap(None, lease(host_key=None, status_since=NOW - 700 * S)), actions.Destroy),
    "proven": (snap(None, lease(provisioned=None)), actions.Provision),
    "proven, and silent for too long": (
        snap(None, lease(provisioned=None, status_since=NOW - 700 * S), link_down_since_ms=NOW - 650 * S),
        actions.Destroy,
    ),
    "proven, and an earlier machine was silent": (
        snap(None, lease(provisioned=None), link_down_since_ms=NOW - 7000 * S), actions.Provision,
    ),
    "ready, and silent for too long, nothing begun": (
        training(
            live=lease(status_since=NOW - 700 * S), operations=(), report=None, link_down_since_ms=NOW - 650 * S,
        ),
        actions.Destroy,
    ),
    "the earlier attempt still runs there": (
        snap(job(attempt=2), lease(provisioned=1), report=report(1), operations=(STARTED,)), actions.StopStages,
    ),
    "the earlier attempt was started, and nobody has looked since": (
        snap(job(attempt=2), lease(provisioned=1), operations=(STARTED,)), actions.StopStages,
    ),
    "the earlier attempt's runner has ended": (
        snap(job(attempt=2), lease(provisioned=1), report=report(0), operations=(STARTED,)), actions.Provision,
    ),
    "provisioned for an earlier attempt": (snap(job(attempt=2), lease(provisioned=1)), actions.Provision),
    "provisioned": (snap(None, lease(), stages=runs()), actions.Move(Trigger.PROVISION)),
    "three machines returned": (snap(None, None, *(GONE,) * 3), actions.HoldJob),
    # work
    "nothing started": (snap(job(JobState.PROVISIONED), lease(), stages=runs()), actions.StartStage),
    "running stage": (training(), actions.Watch),
    "start unknown": (training(operations=(op(Kind.STAGE_START, OpState.UNKNOWN),)), actions.StartStage),
    "runner died": (training(report=report(0)), actions.StartStage),
    "runner dead before we started it": (training(report=report(0, age_s=500)), actions.Watch),
    "runner died, and the clock was set back since it was started": (
        training(report=report(0), operations=(op(Kind.STAGE_START, age_s=-3000),)), actions.StartStage,
    ),
    "runner started again after the clock was set back": (training(report=report(0, age_s=-3000)), actions.Watch),
    "stage failed": (training(stage_failure="out of memory"), actions.HoldJob),
    "next stage": (training(stages=runs(1)), actions.StartStage),
    "all stages done": (training(row=job(JobState.GGUF), stages=runs(3)), actions.FetchManifest),
    "all stages ended while it was held in an earlier state": (
        training(stages=runs(3)), actions.StartStage(lease(), runs(3)[-1]),
    ),
    "manifest here": (training(row=job(JobState.GGUF, manifest_sha256="m"), stages=runs(3)), actions.Download),
    "downloaded": (
        training(row=job(JobState.GGUF, manifest_sha256="m"), stages=runs(3), downloaded=True),
        actions.Move(Trigger.DOWNLOAD),
    ),
    "downloaded, machine gone": (
        snap(job(JobState.GGUF, manifest_sha256="m"), None, GONE, downloaded=True, operations=(STARTED,)),
        actions.Move(Trigger.DOWNLOAD),
    ),
    "to verify": (training(row=job(JobState.DOWNLOADED)), actions.Verify),
    "to verify, machine gone": (snap(job(JobState.DOWNLOADED), None, GONE, operations=(STARTED,)), actions.Verify),
    # the way out
    "verified": (training(row=job(JobState.VERIFIED), receipt=RECEIPT), actions.Destroy),
    "verified, to be asked": (
        training(row=job(JobState.VERIFIED), receipt=RECEIPT, rules=replace(RULES, ask_before_destroy=True)),
        actions.HoldJob,
    ),
    "verified, asked and accepted": (
        training(
            row=job(JobState.VERIFIED), receipt=RECEIPT, accepted=True, rules=replace(RULES, ask_before_destroy=True)
        ),
        actions.Destroy,
    ),
    "verified, a lost machine is left": (snap(job(JobState.VERIFIED), None, LOST, receipt=RECEIPT), actions.Destroy),
    "verified, and the destroy of a lost machine does not take": (
        snap(job(JobState.VERIFIED), lease(), EARLIER, operations=(STARTED, ITS_DESTROY), receipt=RECEIPT),
        actions.Destroy(lease(), "verified"),
    ),
    "cancelled over the budget, and the destroy of a late arrival does not take": (
        training(
            row=job(JobState.SFT, wish=Wish.CANCEL), live=lease(cost=50_000_000), late=EARLIER,
            operations=(STARTED, ITS_DESTROY),
        ),
        actions.HoldJob(H.CANCEL_WISH, "outputs exist that are not verified here"),
    ),
    "held over its limit, and the destroy of a late arrival does not take": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 7200 * S), rescued=True,
            live=lease(created_at=NOW - 9000 * S), late=EARLIER,
            operations=(STARTED, ITS_DESTROY),
        ),
        actions.StopMachine,
    ),
    "held for its budget at a price that rose, and silent for longer than the hold may cost": (
        training(
            row=job(JobState.DPO, hold_reason=H.BUDGET, hold_since=NOW - 25 * S),
            live=lease(price_per_hour=400_000_000), link_down_since_ms=NOW - 20 * S,
            rules=replace(RULES, reserve=248_000_000),
        ),
        actions.StopMachine,
    ),
    "held, and its machine vanished": (
        snap(
            job(JobState.SFT, hold_reason=H.HOST_STOPPED, **HELD), None, GONE, operations=(STARTED,), stages=runs(),
        ),
        actions.HoldJob,
    ),
    "held on the way to the end, and its machine vanished": (
        snap(
            job(JobState.SFT, hold_reason=H.CREDENTIALS, wish=Wish.DISCARD, **HELD), None, GONE,
            operations=(STARTED,), stages=runs(),
        ),
        actions.Wait,
    ),
    "the time is over, and the box has answered in part for hours": (
        training(
            row=LONG_AGO, live=lease(created_at=NOW - 40_000 * S), looked_ms=None, report=None,
            link_down_since_ms=NOW - 3600 * S, silent_since_ms=NOW,
        ),
        actions.HoldJob,
    ),
    "the time is over, and the box is asked first whether training is": (
        training(row=LONG_AGO, live=lease(created_at=NOW - 40_000 * S), looked_ms=None, report=None), actions.Watch,
    ),
    "held for that already": (
        snap(job(JobState.SFT, hold_reason=H.GONE, **HELD), None, GONE, operations=(STARTED,), stages=runs()),
        actions.Wait,
    ),
    "held with the model here, and its machine vanished": (
        snap(
            job(JobState.DOWNLOADED, hold_reason=H.NOT_VERIFIED, **HELD), None, GONE, operations=(STARTED,),
            stages=runs(3),
        ),
        actions.Wait,
    ),
    "held for its budget, and what is saved arrives wrong": (
        training(row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD), report=report(0), saves_failed=2), actions.Save,
    ),
    "each time": (
        training(row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD), report=report(0), saves_failed=3),
        actions.StopMachine,
    ),
    "held as the end is near, and what is saved arrives wrong each time": (
        training(row=job(JobState.SFT, hold_reason=H.LOSS_NEAR, **HELD), saves_failed=3), actions.Watch,
    ),
    "held over its limit, exited by the market's word and meant to run, silent": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 7200 * S),
            live=lease(status="exited", running_ms=9, created_at=NOW - 9000 * S), link_down_since_ms=NOW - 7200 * S,
        ),
        actions.StopMachine,
    ),
    "destroy unknown": (training(operations=(STARTED, op(Kind.DESTROY, OpState.UNKNOWN))), actions.Wait),
    "destroy accepted": (training(operations=(STARTED, op(Kind.DESTROY, age_s=5))), actions.Wait),
    "destroy accepted, not seen since": (
        training(operations=(STARTED, op(Kind.DESTROY, age_s=90)), live=lease(last_seen=NOW - 80 * S)), actions.Wait,
    ),
    "the runner died four times": (training(operations=starts(4), report=report(0)), actions.StartStage),
    "the runner died five times": (training(operations=starts(5), report=report(0)), actions.HoldJob),
    "it died once, after four starts whose answers were lost": (
        training(operations=(STARTED,) * 5, report=report(0)), actions.StartStage,
    ),
    "destroy typed, listed for minutes yet": (
        training(row=job(JobState.SFT, wish=Wish.ABANDON), operations=(STARTED, op(Kind.DESTROY, age_s=600))),
        actions.Wait,
    ),
    "destroy typed, still listed": (
        training(operations=(STARTED, op(Kind.DESTROY, age_s=1000, permit="token"))), actions.HoldJob,
    ),
    "destroy typed, still listed, and wished": (
        training(row=job(JobState.SFT, wish=Wish.ABANDON), operations=(STARTED, op(Kind.DESTROY, age_s=1000))),
        actions.HoldJob,
    ),
    "destroy typed, still listed, and held for its limit": (
        training(
            row=job(JobState.SFT, hold_reason=H.CANCEL_WISH, hold_since=NOW - 4000 * S), rescued=True,
            live=lease(created_at=NOW - 9000 * S), operations=(STARTED, op(Kind.DESTROY, age_s=1000, permit="token")),
        ),
        actions.StopMachine,
    ),
    "the destroy of a late machine is out": (
        snap(
            job(JobState.SFT), lease(), LOST, stages=runs(), report=report(1),
            operations=(STARTED, op(Kind.DESTROY, OpState.UNKNOWN, lease_id=2)),
        ),
        actions.Watch,
    ),
    "destroy typed again": (
        training(operations=(STARTED, op(Kind.DESTROY, age_s=90, permit="token")), token=TOKEN), actions.Destroy,
    ),
    "destroy accepted, still listed": (
        training(operations=(STARTED, op(Kind.DESTROY, age_s=90)), receipt=RECEIPT), actions.Destroy,
    ),
    "destroy accepted, still listed, the model lost here meanwhile": (
        training(operations=(STARTED, op(Kind.DESTROY, age_s=1000))), actions.HoldJob,
    ),
    "destroy refused a moment ago": (
        snap(job(JobState.VERIFIED), lease(), receipt=RECEIPT, operations=(STARTED, REFUSED)), actions.Wait,
    ),
    "destroy refused a while ago": (
        snap(job(JobState.VERIFIED), lease(), receipt=RECEIPT,
             operations=(STARTED, replace(REFUSED, created_at=NOW - 90 * S))), actions.Destroy,
    ),
    "destroy refused again and again": (
        snap(job(JobState.VERIFIED), lease(), receipt=RECEIPT, operations=(STARTED, *15 * (REFUSED,))), actions.HoldJob,
    ),
    "destroy refused before the person spoke": (
        snap(job(JobState.VERIFIED, spoken_at=NOW), lease(), receipt=RECEIPT,
             operations=(STARTED, *15 * (REFUSED,))), actions.Destroy,
    ),
    "verified, all gone": (
        snap(job(JobState.VERIFIED), None, GONE, receipt=RECEIPT), actions.Move(Trigger.CONFIRM_DESTROYED),
    ),
    # hosts that go
    "vanished after work": (snap(job(JobState.SFT), None, GONE, operations=(STARTED,), stages=runs()), actions.HoldJob),
    "vanished while held by the person, resumed since": (
        snap(job(JobState.SFT, spoken_at=NOW + 1), None, GONE, operations=(STARTED,), stages=runs(1)), actions.HoldJob,
    ),
    "written off after work": (
        snap(job(JobState.SFT), None, lease(state=LeaseState.WRITTEN_OFF), operations=(STARTED,), stages=runs(1)),
        actions.HoldJob,
    ),
    "vanished after work, and a late arrival came and went since": (
        snap(
            job(JobState.DPO), None, GONE, lease(id=2, instance_id=78, state=LeaseState.GONE, provisioned=None),
            operations=(STARTED,), stages=runs(1),
        ),
        actions.HoldJob,
    ),
    "vanished after work, begun again since": (
        snap(
            job(JobState.QUEUED, attempt=2), None, GONE, operations=(replace(STARTED, nonce="old"),), stages=runs(),
        ),
        actions.Rent,
    ),
    "vanished before work": (snap(job(), None, GONE), actions.Rent),
    "offline by the market's word: asked itself": (training(live=lease(status="offline")), actions.Watch),
    "offline before work": (training(live=lease(status="offline"), operations=()), actions.Wait),
    "offline past patience, and silent": (
        training(live=lease(status="offline", status_since=NOW - 2000 * S), link_down_since_ms=NOW - 1900 * S),
        actions.MarkLost,
    ),
    "offline past patience, but it answers": (
        training(live=lease(status="offline", status_since=NOW - 2000 * S)), actions.Watch,
    ),
    "offline past patience, and one connection breaks": (
        training(live=lease(status="offline", status_since=NOW - 2000 * S), link_down_since_ms=NOW), actions.Watch,
    ),
    "offline past patience, never provisioned again": (
        training(live=lease(status="offline", provisioned=None, status_since=NOW - 2000 * S)), actions.MarkLost,
    ),
    "a machine was lost": (snap(job(JobState.SFT), None, LOST), actions.Rent),
    "a machine was lost, and what training may cost is spent": (
        snap(job(JobState.SFT), None, replace(LOST, cost=9_000_000), stages=runs()),
        actions.HoldJob(H.BUDGET, TRAINED_OUT),
    ),
    "lost while it converted: it trains again, which may not touch the reserve": (
        training(row=job(JobState.GGUF, attempt=2), live=lease(cost=9_200_000)), actions.HoldJob(H.BUDGET, TRAINED_OUT),
    ),
    "what training may cost was spent in a sleep: it may be over": (
        training(live=lease(cost=9_200_000), looked_ms=NOW - 3600 * S, awake_since_ms=NOW - 5 * S), actions.Watch,
    ),
    "and this daemon has not looked yet": (training(live=lease(cost=9_200_000), looked_ms=None), actions.Watch),
    "and its time with it": (training(live=lease(created_at=NOW - 40_000 * S), looked_ms=None), actions.Watch),
    "and the machine has stopped itself": (
        training(live=lease(cost=9_200_000, status="exited", intended="stopped", running_ms=9), looked_ms=None),
        actions.StartMachine,
    ),
    "and nobody answers": (
        training(live=lease(cost=9_200_000), looked_ms=None, link_down_since_ms=NOW - 700 * S),
        actions.HoldJob(H.BUDGET, TRAINED_OUT),
    ),
    "and the reserve too": (
        training(live=lease(cost=10_000_000), looked_ms=None), actions.HoldJob(H.BUDGET, TRAINED_OUT),
    ),
    "and the box said before that nothing runs": (
        training(live=lease(cost=9_200_000, status="exited", intended="stopped"), looked_ms=None, report=report(0)),
        actions.HoldJob(H.BUDGET, TRAINED_OUT),
    ),
    "and it said so of the stage before this one": (
        training(
            live=lease(cost=9_200_000, status="exited", intended="stopped", running_ms=9), looked_ms=None,
            report=report(0), stages=runs(1),
        ),
        actions.StartMachine,
    ),
    "and nothing was begun": (
        training(live=lease(cost=9_200_000), looked_ms=None, operations=()), actions.HoldJob(H.BUDGET, TRAINED_OUT),
    ),
    "all was trained while nobody looked": (
        training(stages=runs(2), live=lease(cost=9_200_000)), actions.StartStage,
    ),
    "a machine that worked comes up no more": (
        training(
            live=lease(status="loading", running_ms=9, status_since=NOW - 1400 * S), link_down_since_ms=NOW - 1300 * S,
        ),
        actions.HoldJob,
    ),
    "a machine that worked waits for its GPU": (
        training(live=lease(status="scheduling", running_ms=9, status_since=NOW - 300 * S), link_down_since_ms=NOW),
        actions.Watch,
    ),
    "and waits for hours": (
        training(
            live=lease(status="scheduling", running_ms=9, status_since=NOW - 9000 * S),
            link_down_since_ms=NOW - 1300 * S,
        ),
        actions.HoldJob,
    ),
    "for hours, and one connection breaks": (
        training(live=lease(status="scheduling", running_ms=9, status_since=NOW - 9000 * S), link_down_since_ms=NOW),
        actions.Watch,
    ),
    "or so it is said for hours, and the box answers": (
        training(live=lease(status="scheduling", running_ms=9, status_since=NOW - 9000 * S)), actions.Watch,
    ),
    "the same, silent before a hold that was ended a moment ago": (
        training(
            row=job(JobState.SFT, spoken_at=NOW - 5 * S), link_down_since_ms=NOW - 9000 * S,
            live=lease(status="scheduling", running_ms=9, status_since=NOW - 9000 * S),
        ),
        actions.Watch,
    ),
    "a machine that nothing here can prove": (training(live=lease(host_key=None, challenge=None)), actions.MarkLost),
    "stopped by the host": (training(live=lease(status="exited", running_ms=9)), actions.StartMachine),
    "exited, says the market, and the box is asked first": (
        training(live=lease(status="exited", running_ms=9), link_down_since_ms=None), actions.Watch,
    ),
    "and it stopped itself, or we it": (
        training(live=lease(status="exited", intended="stopped", running_ms=9), link_down_since_ms=None),
        actions.StartMachine,
    ),
    "exited, and held": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, **HELD), live=lease(status="exited", running_ms=9),
            link_down_since_ms=None,
        ),
        actions.Save,
    ),
    "exited, and its money is spent": (
        training(
            row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD), live=lease(status="exited", running_ms=9),
            link_down_since_ms=None,
        ),
        actions.StopStages,
    ),
    "exited, but on its GPU, and held long enough": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 9000 * S),
            live=lease(status=ON_GPU, running_ms=9, created_at=NOW - 9000 * S), rescued=True,
            link_down_since_ms=NOW - 700 * S,
        ),
        actions.StopMachine,
    ),
    "start asked: it may answer before the market says so": (
        training(live=lease(status="exited", running_ms=9), operations=(STARTED, op(Kind.START, age_s=30))),
        actions.Watch,
    ),
    "start asked of one that is not ready": (
        training(
            live=lease(status="exited", running_ms=9, provisioned=None),
            operations=(STARTED, op(Kind.START, age_s=30)),
        ),
        actions.Wait,
    ),
    "a start that a crash kept from being sent": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 900 * S),
            operations=(STARTED, op(Kind.START, OpState.ABSENT, age_s=700, sent_at=None)),
        ),
        actions.StartMachine,
    ),
    "started, and stopped for a hold that was ended since": (
        training(
            row=job(JobState.SFT, spoken_at=NOW - 5 * S), live=lease(status="exited", intended="stopped", running_ms=9),
            operations=(STARTED, op(Kind.START, age_s=300), op(Kind.STOP, age_s=100)),
        ),
        actions.StartMachine,
    ),
    "does not start, resumed since": (
        training(
            row=job(JobState.SFT, spoken_at=NOW - 5 * S), live=lease(status="exited", running_ms=9),
            operations=(STARTED, op(Kind.START, age_s=700)),
        ),
        actions.StartMachine,
    ),
    "a start that the market was too busy for": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 900 * S),
            operations=(STARTED, op(Kind.START, OpState.REFUSED, age_s=30)),
        ),
        actions.Wait,
    ),
    "a start that did not happen": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 900 * S),
            operations=(STARTED, op(Kind.START, OpState.ABSENT, age_s=90)),
        ),
        actions.StartMachine,
    ),
    "a start that did not happen, again and again": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 900 * S),
            operations=(STARTED, *15 * (op(Kind.START, OpState.ABSENT, age_s=90),)), link_down_since_ms=NOW - 650 * S,
        ),
        actions.HoldJob,
    ),
    "start asked, and no listing since": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 900 * S, last_seen=NOW - 701 * S),
            operations=(STARTED, op(Kind.START, age_s=700)),
        ),
        actions.Watch,
    ),
    "does not start": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 900 * S),
            operations=(STARTED, op(Kind.START, age_s=700)), link_down_since_ms=NOW - 650 * S,
        ),
        actions.HoldJob,
    ),
    "called exited for hours, started once, and a connection breaks again": (
        training(
            live=lease(status="exited", running_ms=9, status_since=NOW - 9000 * S),
            operations=(STARTED, op(Kind.START, age_s=700)), link_down_since_ms=NOW - S,
        ),
        actions.Watch,
    ),
    "ran after its start, was never heard, and stopped again": (
        training(
            live=STOPPED_AGAIN, operations=(STARTED, op(Kind.START, age_s=3600)), link_down_since_ms=NOW - 7000 * S,
        ),
        actions.HoldJob,
    ),
    "the same, and it was heard meanwhile": (
        training(
            live=STOPPED_AGAIN, operations=(STARTED, op(Kind.START, age_s=3600)), link_down_since_ms=NOW - 900 * S,
        ),
        actions.StartMachine,
    ),
    "the same, and we slept while it ran": (
        training(
            live=replace(STOPPED_AGAIN, status_since=NOW - 695 * S), awake_since_ms=NOW - 700 * S,
            operations=(STARTED, op(Kind.START, age_s=3600)), link_down_since_ms=NOW - 7000 * S,
        ),
        actions.StartMachine,
    ),
    "the same, for the third time": (
        training(
            row=LONG_AGO, live=replace(STOPPED_AGAIN, status_since=NOW - 695 * S), awake_since_ms=NOW - 700 * S,
            operations=(STARTED, *(op(Kind.START, age_s=s) for s in (6000, 5000, 3600))),
            link_down_since_ms=NOW - 7000 * S,
        ),
        actions.HoldJob,
    ),
    "a queued start whose stop did not happen": (
        training(live=QUEUED_START, operations=(STARTED, op(Kind.START), op(Kind.STOP, OpState.ABSENT))),
        actions.StopMachine,
    ),
    "a queued start whose stop is not answered": (
        training(live=QUEUED_START, operations=(STARTED, op(Kind.START), op(Kind.STOP, OpState.UNKNOWN))),
        actions.Wait,
    ),
    "a queued start that was stopped": (
        training(
            live=replace(QUEUED_START, intended="stopped"), operations=(STARTED, op(Kind.START), op(Kind.STOP)),
        ),
        actions.Wait,
    ),
    "a queued start that was stopped, and a listing saw both": (
        training(
            live=replace(QUEUED_START, intended="stopped", status_since=NOW - 690 * S),
            operations=(STARTED, op(Kind.START, age_s=700), op(Kind.STOP, age_s=699)),
        ),
        actions.HoldJob,
    ),
    "the same, and the person said to go on": (
        training(
            row=job(JobState.SFT, spoken_at=NOW - 5 * S),
            live=replace(QUEUED_START, intended="stopped", status_since=NOW - 690 * S),
            operations=(STARTED, op(Kind.START, age_s=700), op(Kind.STOP, age_s=699)),
        ),
        actions.StartMachine,
    ),
    # money and time
    "budget": (training(live=lease(cost=9_200_000)), actions.HoldJob),
    "contract ends soon": (training(loss_ms=NOW + 1000 * S), actions.HoldJob),
    "contract ends later": (training(loss_ms=NOW + 1300 * S), actions.Watch),
    "time": (training(live=lease(created_at=NOW - 37_000 * S), row=job(JobState.SFT, spoken_at=0)), actions.HoldJob),
    # holds
    "held, waiting": (training(row=job(JobState.SFT, hold_reason=H.STAGE_FAILED, **HELD), rescued=True), actions.Watch),
    "held, something to save": (training(row=job(JobState.SFT, hold_reason=H.STAGE_FAILED, **HELD)), actions.Save),
    "held for its limit": (
        training(
            row=job(JobState.SFT, hold_reason=H.STAGE_FAILED, hold_since=NOW - 4000 * S), rescued=True,
            live=lease(created_at=NOW - 9000 * S),
        ),
        actions.StopMachine,
    ),
    "held for its limit, and a crash kept the stop from being sent": (
        training(
            row=job(JobState.SFT, hold_reason=H.STAGE_FAILED, hold_since=NOW - 4000 * S), rescued=True,
            live=lease(created_at=NOW - 9000 * S),
            operations=(STARTED, op(Kind.STOP, OpState.ABSENT, age_s=5, sent_at=None)),
        ),
        actions.StopMachine,
    ),
    "came back by itself while held for that": (
        training(row=job(JobState.SFT, hold_reason=H.HOST_STOPPED, **HELD), report=report(0)), actions.StopMachine,
    ),
    "held, stopped": (
        training(row=job(JobState.SFT, hold_reason=H.STAGE_FAILED, **HELD), live=lease(status="stopped")), actions.Wait,
    ),
    "held, a queued start whose stop did not happen": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, **HELD), live=QUEUED_START,
            operations=(STARTED, op(Kind.START), op(Kind.STOP, OpState.ABSENT, age_s=5)),
        ),
        actions.StopMachine,
    ),
    "held, a queued start whose stop nobody has seen since": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, **HELD), live=replace(QUEUED_START, last_seen=NOW - 9 * S),
            operations=(STARTED, op(Kind.START), op(Kind.STOP, age_s=5)),
        ),
        actions.Wait,
    ),
    "held, the host stopped it, and may start it again": (
        training(row=job(JobState.SFT, hold_reason=H.BY_PERSON, **HELD), live=QUEUED_START), actions.Wait,
    ),
    "held since it did not start, and it still may": (
        training(row=job(JobState.SFT, hold_reason=H.HOST_STOPPED, **HELD), live=QUEUED_START), actions.StopMachine,
    ),
    "held since it did not start, and it was stopped a moment ago": (
        training(
            row=job(JobState.SFT, hold_reason=H.HOST_STOPPED, **HELD),
            live=replace(QUEUED_START, last_seen=NOW - 9 * S),
            operations=(STARTED, op(Kind.STOP, age_s=5)),
        ),
        actions.Wait,
    ),
    "held since it did not start, and it stays so": (
        training(
            row=job(JobState.SFT, hold_reason=H.HOST_STOPPED, **HELD), live=replace(QUEUED_START, intended="stopped"),
        ),
        actions.Wait,
    ),
    "held for its limit, and the stop did not happen": (
        training(
            row=job(JobState.SFT, hold_reason=H.STAGE_FAILED, hold_since=NOW - 4000 * S), rescued=True,
            live=lease(created_at=NOW - 9000 * S), operations=(STARTED, op(Kind.STOP, OpState.ABSENT, age_s=5)),
        ),
        actions.StopMachine,
    ),
    "held since nothing fits, and a machine came late": (
        snap(job(hold_reason=H.NO_OFFERS, hold_since=NOW - 9000 * S), lease(created_at=NOW - 4000 * S)),
        actions.StopMachine,
    ),
    "wrong counts": (snap(job(hold_reason=H.INTEGRATION, **HELD), lease()), actions.Destroy),
    "wrong counts on a machine that worked": (
        training(row=job(hold_reason=H.INTEGRATION, **HELD)), actions.Watch,
    ),
    "budget hold, still training": (training(row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD)), actions.StopStages),
    "budget hold, out of the market's sight": (
        training(row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD), live=lease(status="offline"), report=report(0)),
        actions.Save,
    ),
    "budget hold, saved": (
        training(row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD), report=report(0), rescued=True),
        actions.StopMachine,
    ),
    "budget hold, saved, soon after a resume started a machine that had been stopped": (
        training(
            row=job(JobState.SFT, hold_reason=H.BUDGET, **HELD), report=report(0), rescued=True,
            operations=(STARTED, op(Kind.STOP, age_s=200), op(Kind.START, age_s=100)),
        ),
        actions.StopMachine,
    ),
    "time hold, on a machine that took a lost one's place unused": (
        snap(job(JobState.SFT, hold_reason=H.TIME, **HELD), lease()), actions.Destroy,
    ),
    "held, out of reach": (
        training(row=job(JobState.SFT, hold_reason=H.BY_PERSON, **HELD), link_down_since_ms=NOW - 5 * S), actions.Save,
    ),
    "held for its limit, out of reach": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 4000 * S),
            live=lease(created_at=NOW - 9000 * S), link_down_since_ms=NOW - 700 * S,
        ),
        actions.StopMachine,
    ),
    "held for its limit, most of it asleep, and no network yet": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 4000 * S),
            live=lease(created_at=NOW - 9000 * S), link_down_since_ms=NOW - 5 * S,
        ),
        actions.Save,
    ),
    "held for its limit and the way home's, and the box still drips": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 5500 * S),
            live=lease(created_at=NOW - 9000 * S),
        ),
        actions.StopMachine,
    ),
    "the same, most of it asleep": (
        training(
            row=job(JobState.SFT, hold_reason=H.BY_PERSON, hold_since=NOW - 5500 * S), awake_since_ms=NOW - 60 * S,
            live=lease(created_at=NOW - 9000 * S),
        ),
        actions.Save,
    ),
    "budget hold, does not stop training": (
        training(
            row=job(JobState.SFT, hold_reason=H.BUDGET, hold_since=NOW - 4000 * S), rescued=True,
            live=lease(created_at=NOW - 9000 * S),
        ),
        actions.StopMachine,
    ),
    # the way home
    "on the way home, into the reserve": (coming_home(cost=9_500_000), actions.Download),
    "on the way home, over the limit": (coming_home(cost=10_000_000), actions.HoldJob(H.BUDGET, NOT_HOME)),
    "over the limit, and the person said to go on": (coming_home(cost=10_000_000, spoken_s=60), actions.Download),
    "converting, over the limit": (coming_home(2, cost=10_000_000), actions.HoldJob(H.BUDGET, NOT_HOME)),
    "converting, and the contract ends": (coming_home(2, loss_ms=NOW + 900 * S), actions.HoldJob(H.LOSS_NEAR, NO_TIME)),
    "downloading, and the contract ends": (coming_home(loss_ms=NOW + 900 * S), actions.Download),
    # wishes
    "cancel, nothing rented": (snap(job(wish=Wish.CANCEL)), actions.Move),
    "cancel, nothing started": (snap(job(wish=Wish.CANCEL), lease()), actions.Destroy),
    "cancel, work exists: saved in a hold, which has a price limit": (
        training(row=job(JobState.SFT, wish=Wish.CANCEL)), actions.HoldJob,
    ),
    "discard, typed": (training(row=job(JobState.SFT, wish=Wish.DISCARD), token=TOKEN), actions.Destroy),
    "discard, token expired": (training(row=job(JobState.SFT, wish=Wish.DISCARD)), actions.HoldJob),
    "abandon, typed": (training(row=job(JobState.SFT, wish=Wish.ABANDON), token=TOKEN), actions.Destroy),
    "cancel, already verified": (
        training(row=job(JobState.VERIFIED, wish=Wish.CANCEL), receipt=RECEIPT), actions.Destroy,
    ),
    "abandon, another machine was typed": (
        training(row=job(JobState.SFT, wish=Wish.ABANDON), token=replace(TOKEN, instance_id=78)), actions.HoldJob,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str) -> None:
    """The situation leads to this action."""
    snapshot, expected = CASES[name]

    action = p.plan(snapshot)

    if isinstance(expected, type):
        assert type(action) is expected, action
    else:
        assert action == expected


@pytest.mark.parametrize("name", [n for n, (s, _) in CASES.items() if s.lease is not None])
def test_a_lost_machine_stands_in_nobodys_way(name: str) -> None:
    """Its destroy does not take, and what is decided about the machine that works is the same."""
    snapshot = CASES[name][0]
    beside = replace(
        snapshot, leases=(EARLIER, *snapshot.leases), operations=(*snapshot.operations, ITS_DESTROY)
    )  # fmt: skip

    assert p.plan(beside) == p.plan(snapshot)


@pytest.mark.parametrize("name", CASES)
def test_what_came_late_and_went_changes_nothing(name: str) -> None:
    """A machine of a create that was given up was returned unused before the person last spoke."""
    snapshot = CASES[name][0]
    late = lease(id=9, instance_id=99, state=LeaseState.GONE, provisioned=None, created_at=snapshot.job.spoken_at - 1)

    assert p.plan(replace(snapshot, leases=(*snapshot.leases, late))) == p.plan(snapshot)


def silent(snapshot: Snapshot) -> Snapshot:
    """The same, a week later, with nobody having answered since."""
    return replace(snapshot, now_ms=NOW + 7 * 86_400 * S)


@pytest.mark.parametrize("name", [n for n in CASES if "unused" not in n])
def test_time_alone_never_destroys_what_worked(name: str) -> None:
    """However long the silence: no destroy without a receipt or a typed token once a stage was started."""
    snapshot = silent(CASES[name][0])

    action = p.plan(snapshot)

    if isinstance(action, actions.Destroy) and snapshot.work_started(action.lease):
        assert snapshot.receipt or snapshot.token or snapshot.destroys(action.lease)


def test_no_wait_without_a_reason() -> None:
    """Every wait says what for."""
    waits = [action for s, _ in CASES.values() if isinstance(action := p.plan(s), actions.Wait)]

    assert len(waits) > 5 and all(wait.why for wait in waits)
