"""The invariants of this tier, each against the ledger of the fakes and never the daemon's own word.

`AT` says at which moment each is checked: after every step, at a call that reaches the market, when the job moves, when
a create is given up, and when the run is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from daemon.domain import actions
from daemon.domain.holds import HOLDS, HoldReason, Rescue
from daemon.domain.lifecycle import EDGES, MAIN_LINE, JobState
from daemon.domain.records import Kind, LeaseState, OpState
from daemon.domain.snapshot import Rules, Snapshot
from tests.simulation.decision.market import HOUR_MS, Machine
from tests.simulation.decision.store import LeaseRow
from tests.simulation.decision.world import TIMING

if TYPE_CHECKING:
    from tests.simulation.decision.run import Run

SLACK_MS = 900_000  # the longest stride between two decisions or passes of this model
PASS_MS = 40_000  # the shortest between two passes
QUEUED_PASSES = (SLACK_MS + round(TIMING.start_patience * 1000)) // PASS_MS  # where the answer died with its process


ENDINGS = {edge.trigger for edge in EDGES if edge.target.is_terminal}


class Violation(AssertionError):
    """An invariant does not hold."""


def after_step(run: Run) -> None:
    w, store = run.w, run.w.store
    live = len([lease for lease in store.leases if lease.state is LeaseState.LIVE])
    opened = len(store.open(Kind.CREATE)) if store.opened else 0
    if live + opened > 1:
        late = any(m.listed_from > m.created for m in w.market.machines)
        if live > 1 or opened > 1 or not late:
            raise Violation(f"I3: {live} LIVE leases and {opened} unresolved creates")
    _limit_is_kept(run)
    if w.market.foreign_touched:
        raise Violation("I18: an instance that is not ours was changed")
    if store.job.hold_reason is not None and store.job.hold_reason not in HOLDS:
        raise Violation("I22: held without a reason")


def _limit_is_kept(run: Run) -> None:
    """I11: what training may spend ends before the reserve, and the way home has that, once for each word of a person.

    One stride of this model is forgiven to each that runs. A second one to a machine that was written off and runs on
    beside it: it counts as the last listing had it. And one for each time the clock was set back: by how much is known
    from the last pass. Where no machine runs nothing is spent: a hold before it may have spent what is gone. Nobody
    can know while listings fail: then the box's own limit stands alone. A sleep, and the question after it or after a
    start whether training has ended meanwhile, may take of the reserve, once.
    """
    w, limit, job = run.w, run.w.rules.cost_limit, run.w.store.job
    if limit is None or run.slept_in_step or run.disturbed or job.hold_reason is not None or job.wish is not None:
        return
    if run.known_at < w.market.blind_until:
        return
    if job.state not in (JobState.SFT, JobState.DPO, JobState.GGUF):
        return
    running = [m for m in run.known if m.is_billable and m.actual == "running"]
    leases = [w.store.by_instance(m.id) for m in running]
    strides = run.set_backs + sum(1 if lease is not None and lease.is_held else 2 for lease in leases)
    slack = strides * run.dearest * SLACK_MS / HOUR_MS
    spent = run.spent
    if not w.take().is_training:
        begun = max((max(lease.created_at, job.spoken_at) for lease in leases if lease is not None), default=w.wall)
        since_spoken = max((m.price for m in running), default=0) * max(0, w.wall - begun) / HOUR_MS
        if running and min(spent - limit, since_spoken - w.rules.reserve) > slack:
            raise Violation(f"I11: the way home has spent {spent:.0f} of {limit}")
    elif running and spent > max(limit - w.rules.reserve, min(limit, run.excused)) + slack:
        raise Violation(f"I11: training has spent {spent:.0f} of {limit} and goes into the reserve")


def after_pass(run: Run) -> None:
    """I10 and the second half of I3, when the market has just been listed."""
    w, wall = run.w, run.w.wall
    recorded, unseen_ms = w.store.lowered, (1 + run.disturbed + run.set_backs) * SLACK_MS + run.unseen_ms
    for lease in w.store.leases:
        recorded += lease.cost
        machine = w.market.by_id(lease.instance_id) if lease.observed_ms == wall and lease.is_held else None
        if machine is None:
            continue
        if machine.queued_passes >= 0:
            _queue_is_ended(run, lease, machine)
        unseen = unseen_ms * machine.dearest / HOUR_MS
        if lease.cost < 0.99 * machine.cost - unseen:
            raise Violation(f"I10: instance {machine.id} cost {machine.cost:.0f}, recorded {lease.cost}")
        if lease.state is LeaseState.LOST and machine.actual == "running" and machine.listed(w.now):
            stopped = any(op.kind is Kind.STOP for op in w.store.of_lease(lease))
            if not stopped and machine.offline_until <= w.now and machine.shown_until <= w.now:
                raise Violation(f"I3: LOST instance {machine.id} runs on after a pass")
    if recorded < run.recorded:
        raise Violation(f"I10: recorded cost fell from {run.recorded} to {recorded}")
    run.recorded = recorded


def _queue_is_ended(run: Run, lease: LeaseRow, machine: Machine) -> None:
    """I11: a start that only queued bills once the GPU is free. A destroy that is under way ends it too."""
    machine.queued_passes += 1
    destroyed = any(op.kind is Kind.DESTROY for op in run.w.store.of_lease(lease))
    if machine.queued_passes > QUEUED_PASSES and not destroyed and lease.state is LeaseState.LIVE:
        raise Violation(f"I11: the start of {machine.id} is queued for {machine.queued_passes} listings, and left so")


def at_create(run: Run, listed_at: int) -> None:
    w = run.w
    labels = w.market.labels
    if len(set(labels)) != len(labels):
        raise Violation(f"I7: {labels[-1]} was sent twice")
    if not any(op.label == labels[-1] and op.sent_at is not None for op in w.store.operations):
        raise Violation("I6: a create without a durable intent")
    known = w.known_lost()
    for machine in w.market.machines[:-1]:
        listed = machine.listed_from < listed_at and machine.omitted_until <= listed_at and machine.label_shown == ""
        if machine.ours and machine.is_billable and listed and machine.id not in known:
            raise Violation(f"I3: rents although {machine.id} is there")


def at_destroy(run: Run, machine: Machine) -> None:
    """I1, by what really lies on this disk, was really typed and really ran there."""
    w = run.w
    job = w.store.job
    home = (job.attempt, job.manifest_sha256 or "") in w.home.proven and not run.touched_before_permit
    typed = w.typed.get(machine.id)
    said = typed is not None and typed[0] == job.attempt and w.now - typed[1] <= 900_000 + SLACK_MS + run.slept
    if machine.begun and not home and not said:
        raise Violation(f"I1: destroys {machine.id}, which ran {sorted(machine.begun)}")


def at_move(run: Run, was: JobState, to: JobState, by_person: bool) -> None:
    w = run.w
    if to is JobState.VERIFIED and (w.store.job.attempt, w.store.job.manifest_sha256) not in w.home.proven:
        raise Violation("I2: VERIFIED without a proof of this manifest")
    if to in MAIN_LINE and was in MAIN_LINE and MAIN_LINE.index(to) < MAIN_LINE.index(was):
        lost = was is JobState.VERIFIED and to is JobState.GGUF
        if not by_person and not lost:
            raise Violation(f"I8: back from {was} to {to} without a word")
    if to.is_terminal:
        off = {lease.instance_id for lease in w.store.leases if lease.state is LeaseState.WRITTEN_OFF}
        for machine in w.market.machines:
            seen = machine.listed_from <= run.passed_at and machine.omitted_until <= run.passed_at and not run.revived
            # Its reply lost and its label edited before anybody saw it: nothing tells that it is ours.
            seen = seen and (machine.label_shown == "" or w.store.by_instance(machine.id) is not None)
            if machine.ours and machine.is_billable and seen and machine.id not in off:
                raise Violation(f"I5: {to} while instance {machine.id} bills")
    if to in (JobState.CANCELLED, JobState.ABANDONED) and not by_person and not run.asked_to_end:
        raise Violation(f"I19: {to} and nobody asked")


def at_absent(run: Run, op: object) -> None:
    """I16: a create is given up after passes that ran and time awake, never after a sleep."""
    passes, awake = run.sent_marks.get(op.id, (0, 0))  # type: ignore[attr-defined]
    if run.w.trusted_passes - passes < TIMING.create_absent_listings:
        raise Violation("I16: absent after too few listings")
    if run.w.awake - awake < TIMING.create_absent_span * 1000:  # from the pass before the create on
        raise Violation("I16: absent after too little time awake")


def at_untrusted(run: Run, before: tuple[object, ...], after: tuple[object, ...]) -> None:
    if before != after:
        raise Violation("I17: an untrusted listing changed a row")


def at_action(run: Run, s: Snapshot, action: actions.Action) -> None:
    """What is decided, against what is so."""
    w = run.w
    if isinstance(action, actions.Wait) and not action.why:
        raise Violation("I22: waits without a reason")
    if isinstance(action, actions.Move) and action.trigger in ENDINGS and s.held_leases:
        raise Violation(f"I5: {action.trigger} is asked for while instance {s.held_leases[0].instance_id} is held")
    if (patience_s := _patience_s(w.rules, action)) and w.now - w.woke_at <= patience_s * 1000:
        raise Violation(f"I16: {action} {(w.now - w.woke_at) / 1000:.0f} s after a sleep or a start: nobody looked")
    if isinstance(action, actions.MarkLost):
        machine = w.market.by_id(action.lease.instance_id)
        away = s.now_ms - (action.lease.status_since or 0)
        if machine is not None and away <= w.rules.offline_patience_s * 1000:
            raise Violation(f"I16: instance {machine.id} is given up after {away / 1000:.0f} s")
        silent = w.now - run.reached_at
        if action.lease.provisioned == s.job.attempt and silent < w.rules.offline_patience_s * 1000:
            raise Violation(
                f"I16: instance {action.lease.instance_id} is given up {silent / 1000:.0f} s after it answered"
            )
    if isinstance(action, actions.HoldJob) and action.reason is HoldReason.HOST_STOPPED and s.lease is not None:
        machine = w.market.by_id(s.lease.instance_id)
        was_tried = w.now - run.unreached_at <= w.rules.start_patience_s * 1000 + SLACK_MS
        if machine is not None and machine.is_up(w.now) and s.lease.provisioned == s.job.attempt and not was_tried:
            raise Violation(f"I16: instance {machine.id} is called stopped, runs, and nobody asked it")
    if isinstance(action, actions.StopMachine) and s.job.hold_reason is not None and not run.disturbed:
        early = w.now - run.held_from < w.rules.hold_limit * HOUR_MS // run.dearest - SLACK_MS
        machine = w.market.by_id(action.lease.instance_id)
        rescued = w.home.saved_at >= run.held_from or HOLDS[s.job.hold_reason].rescue is Rescue.NOTHING
        known = action.lease.status in ("running", "offline")  # as last listed
        up = machine is not None and machine.begun and machine.is_up(w.now)
        if early and known and up and w.home.room and not rescued:
            raise Violation(f"I11: stops {action.lease.instance_id} before anything of it was saved")


def _patience_s(rules: Rules, action: actions.Action) -> float:
    """How long somebody must have looked in vain before this is decided; 0 for what does not come of patience."""
    if isinstance(action, actions.HoldJob):
        return rules.offer_patience_s if action.reason is HoldReason.NO_OFFERS else 0.0
    why = action.why if isinstance(action, actions.Destroy | actions.MarkLost) else ""
    by_words = {
        "runs, but no login": rules.ssh_patience_s,
        "not running after": rules.boot_patience_s,
        "host offline": rules.offline_patience_s,
        "host unknown": rules.offline_patience_s,
    }
    return next((seconds for words, seconds in by_words.items() if why.startswith(words)), 0.0)


def in_hold(run: Run, machine: Machine, spent: float) -> None:
    """I11: what a hold costs beyond the work.

    Forgiven is one stride of this model before and after, and one for each time the clock was set back; to a sleep in
    it the patience with a lost connection, and that the box goes by the price listed before the last call.
    """
    limit = run.w.rules.hold_limit
    allowed = limit + machine.price * ((2 + run.set_backs) * SLACK_MS + run.blind_ms) / HOUR_MS
    if run.sleeps:
        allowed += min(limit, machine.price * run.w.rules.ssh_patience_s / 3600)
        allowed *= max(1.0, machine.price / machine.known_price)
    if spent > allowed:
        raise Violation(f"I11: a hold cost {spent:.0f} beyond the work, the limit is {limit}")


def in_absence(run: Run, machine: Machine, idle_cost: float) -> None:
    """I11: what a sleep costs beyond the work, in any state. The box goes by the price listed before the last call."""
    limit = run.w.rules.hold_limit * max(1.0, machine.price / machine.known_price)
    if idle_cost > limit + machine.price * SLACK_MS / HOUR_MS:
        raise Violation(f"I11: an absence cost {idle_cost:.0f} beyond the work, the limit is {limit}")


def at_end(run: Run) -> None:
    """I23, I4 and the rest of I3, when everything has worked again for long enough."""
    w, job = run.w, run.w.store.job
    if not job.state.is_terminal and job.hold_reason is None:
        raise Violation(f"I23: {job.state} and neither over nor held: {run.last_action}")
    known = {lease.instance_id: lease for lease in w.store.leases}
    for machine in w.market.machines:
        if not machine.ours or not machine.is_billable or not machine.listed(w.now):
            continue
        lease = known.get(machine.id)
        if lease is None and machine.label_shown == "":
            raise Violation(f"I4: nobody knows of instance {machine.id}")
        if lease is None:
            continue
        if lease.state is LeaseState.LOST and machine.actual == "running":
            raise Violation(f"I3: LOST instance {machine.id} still runs")
        if lease.state is LeaseState.GONE:
            raise Violation(f"I5: instance {machine.id} is called GONE and bills")
        unused = not any(op.may_have_begun_work for op in w.store.of_lease(lease))
        if machine.destroy_asked and unused and lease.is_held and job.state.is_terminal:
            raise Violation(f"I23: a destroy of {machine.id} was not followed to its end")
    for op in w.store.operations:
        if op.state in (OpState.INTENT, OpState.SENT) and op.kind is not Kind.STAGE_START:
            raise Violation(f"I23: {op.kind} is {op.state} for ever")


AT: dict[str, tuple[Callable[..., None], ...]] = {
    "I1": (at_destroy,),
    "I2": (at_move,),
    "I3": (after_step, after_pass, at_create, at_end),
    "I4": (at_end,),
    "I5": (at_action, at_move, at_end),
    "I6": (at_create,),
    "I7": (at_create,),
    "I8": (at_move,),
    "I10": (after_pass,),
    "I11": (in_hold, in_absence, after_step, at_action),
    "I16": (at_absent, at_action),
    "I17": (at_untrusted,),
    "I18": (after_step,),
    "I19": (at_move,),
    "I22": (after_step, at_action),
    "I23": (at_end,),
}
