"""What to do next with one job: pure, time included in the snapshot.

`plan` returns the first thing that has to happen. Doing it and writing it down belongs to control/acts.py, and
control/driver.py then asks again. Every judgement is here: when a machine is ready, when it is given up, when doubt
becomes a hold, when the machine may go. Nothing here destroys by elapsed time, by an exception or by silence.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.domain.actions import (
    Action,
    Destroy,
    Download,
    FetchManifest,
    HoldJob,
    MarkLost,
    Move,
    Prove,
    Provision,
    Rent,
    Save,
    StartMachine,
    StartStage,
    StopMachine,
    StopStages,
    Verify,
    Wait,
    Watch,
)
from daemon.domain.evidence import (
    answers,
    attempt_began_on,
    in_vain,
    is_proven,
    is_ready,
    is_told,
    last_power_sent,
    longer,
    may_answer,
    only_queued,
    runner_alive,
    runner_died,
    runner_may_live,
    sent_operations,
    silent_for,
    stop_failed,
    stopped_before_resume,
)
from daemon.domain.holds import HOLDS, Hold, HoldReason, Release, Rescue
from daemon.domain.lifecycle import JobState, Trigger
from daemon.domain.market import HALTED, ON_GPU, UNREACHABLE
from daemon.domain.records import (
    Kind,
    Lease,
    LeaseState,
    Operation,
    OpState,
    Wish,
)
from daemon.domain.snapshot import Snapshot

# Fragments of the market's status message that no waiting mends; seen by other clients of the API.
BROKEN_HOST = (
    "OCI runtime create failed",
    "no space left on device",
    "manifest unknown",
    "pull rate limit",
    "unauthorized",
)
TRAINS = (JobState.PROVISIONED, JobState.SFT, JobState.DPO, JobState.GGUF)
# Holds that their machine's end changes nothing in: they say so themselves, or wait for an answer.
OUTLASTS = (HoldReason.GONE, HoldReason.RESTORED, HoldReason.CANCEL_WISH, HoldReason.BUDGET)
MACHINES_BEFORE_HOLD = 3  # returned unused in one attempt
LINGERS = 15  # times the wait before a destroy is sent again: an accepted one may stay listed for ten minutes
STARTS_UNHEARD = 3  # of one machine, which ran after each and stopped again, and was never heard
STARTS_ASKED = 15  # of one machine, none of which happened: a busy market may refuse for a quarter of an hour
SAVES_TRIED = 3  # in one hold, of what arrives wrong each time or is not there any more
STARTS_BEFORE_HOLD = 5  # of one stage on one machine, since the person last spoke


def plan(s: Snapshot) -> Action:
    """The next thing to do for the job."""
    if s.open(Kind.CREATE):
        return Wait("renting: the market has not confirmed it yet")
    if pending := _pending_destroy(s):
        return pending
    if s.job.hold_reason:
        return _held(s, HOLDS[s.job.hold_reason])
    if s.job.wish:
        return _fulfil_wish(s)
    if s.job.state is JobState.VERIFIED:
        return _let_go(s)
    if s.job.state is JobState.DOWNLOADED:
        return Verify()
    over = _over_limits(s)
    if over and not _may_have_ended(s):
        return over
    if s.job.manifest_sha256 and s.downloaded:
        return Move(Trigger.DOWNLOAD)
    ready = _ready_machine(s)
    if not isinstance(ready, Lease):
        return ready
    return Watch(ready, s.stage) if over and s.stage else _work(s, ready)


def _pending_destroy(s: Snapshot) -> Action | None:
    """A destroy that was sent is followed to its end before anything else is decided."""
    held = s.held_leases
    for lease in held:
        sent = s.destroys(lease)
        if not sent or (lease.state is LeaseState.LOST and not (s.job.is_ending and s.lease is None)):
            continue  # reconcile ends it; the job goes on elsewhere, and its machine there is let go first
        newest = sent[-1]
        if newest.state.is_open:
            return Wait("destroy sent, answer unknown: may still bill")
        listed_ms = (lease.last_seen or 0) - (newest.sent_at or newest.created_at)
        if listed_ms < s.rules.destroy_resend_s * 1000:
            return Wait("destroy requested, not confirmed yet: may still bill")
        if not s.may_go(lease):  # a typed id is for one destroy, and a receipt can lose its files meanwhile
            if listed_ms < LINGERS * s.rules.destroy_resend_s * 1000:
                return Wait("destroy requested, still listed: may still bill")
            if s.job.hold_reason or s.job.is_ending:
                continue  # a hold has its price limit, a wish and a lost receipt end in one
            return HoldJob(HoldReason.CANCEL_WISH, f"instance {lease.instance_id} is still listed: type its id again")
        return _destroy(s, lease, "the market still lists it")
    if not held and s.open(Kind.DESTROY):
        return Wait("the answer to a destroy is still out")
    return None


def _destroy(s: Snapshot, lease: Lease, why: str) -> Action:
    """What the market refused is asked again, since nothing else ends the machine; at last the person is told."""
    refused = [
        op
        for op in s.operations
        if op.kind is Kind.DESTROY
        and op.lease_id == lease.id
        and op.state is OpState.REFUSED
        and op.created_at >= s.job.spoken_at
    ]
    if len(refused) >= LINGERS and not s.job.hold_reason:
        detail = f"the market refused {len(refused)} times to destroy {lease.instance_id}: {refused[-1].error}"
        return HoldJob(HoldReason.INTERNAL, detail)
    if refused and not longer(s, refused[-1].created_at, s.rules.destroy_resend_s):
        return Wait("the market refused to destroy the machine, and is asked again: may still bill")
    return Destroy(lease, why)


def _ready_machine(s: Snapshot) -> Action | Lease:
    """The provisioned machine, else what brings one nearer; whatever state the job is in."""
    lease = s.lease
    if lease is None:
        return _no_machine(s)
    if lease.host_key is None and lease.challenge is None:
        return MarkLost(lease, "a restored database does not know how it proves itself")
    if lease.status_msg and any(text in lease.status_msg for text in BROKEN_HOST) and not s.work_started(lease):
        return _destroy(s, lease, f"the host cannot start it: {lease.status_msg}")
    if lease.is_running:
        since, patience_s = lease.status_since, s.rules.ssh_patience_s
        never_heard = lease.host_key is None and in_vain(s, since, patience_s)
        if not s.work_started(lease) and (never_heard or silent_for(s, lease, patience_s)):
            return _destroy(s, lease, "runs, but no login was possible")
        if lease.host_key is None:
            return Prove(lease)
        if lease.provisioned != s.job.attempt:
            if lease.provisioned is not None and runner_may_live(s, lease):
                return StopStages(lease)  # of the attempt before: two runners in one folder would spoil both
            return Provision(lease)
        return lease
    if lease.status in UNREACHABLE:
        return _out_of_sight(s, lease)
    if lease.status in (*HALTED, ON_GPU) and (lease.running_ms > 0 or lease.intended == "stopped"):
        return lease if answers(s, lease) else _halted(s, lease)
    since = lease.status_since and max(lease.status_since, s.job.spoken_at)  # in a hold nobody asked the box
    if not s.work_started(lease):
        if in_vain(s, lease.created_at, s.rules.boot_patience_s):
            why = f"not running after {s.rules.boot_patience_s:.0f} s ({lease.status or 'no status'})"
            return _destroy(s, lease, why)
    elif in_vain(s, since, s.rules.boot_patience_s) and (
        not may_answer(s, lease) or silent_for(s, lease, s.rules.boot_patience_s)
    ):
        return HoldJob(HoldReason.HOST_STOPPED, f"instance {lease.instance_id} is {lease.status} and does not come up")
    elif may_answer(s, lease):
        return lease
    return Wait(f"machine is {lease.status or 'being made'}")


def _out_of_sight(s: Snapshot, lease: Lease) -> Action | Lease:
    """The market does not reach the host. We may: a box that answers goes on working, and is not lost."""
    over = in_vain(s, lease.status_since, s.rules.offline_patience_s)
    if not s.work_started(lease):
        return _destroy(s, lease, f"host {lease.status}") if over else Wait(f"the host is {lease.status}")
    if over and (not is_ready(s, lease) or silent_for(s, lease, s.rules.offline_patience_s)):
        return MarkLost(lease, f"host {lease.status}")
    return lease if is_ready(s, lease) else Wait(f"the host is {lease.status}")


def _no_machine(s: Snapshot) -> Action:
    if missing := _missing(s):
        return missing
    if _returned_unused(s) >= MACHINES_BEFORE_HOLD:
        return HoldJob(HoldReason.PROVISIONING, f"{MACHINES_BEFORE_HOLD} machines were returned unused")
    since = s.nothing_fits_since_ms
    if since is not None and in_vain(s, max(since, s.job.spoken_at), s.rules.offer_patience_s):
        return HoldJob(HoldReason.NO_OFFERS, "nothing on the market fits: jobctl plan shows why")
    if s.asked_market_ms is not None and not longer(s, s.asked_market_ms, s.rules.offer_retry_s):
        return Wait("no offer fits; looking again soon")
    return Rent()


def _missing(s: Snapshot) -> HoldJob | None:
    """The machine on which this attempt began is there no more, whatever came and went after it."""
    for lease in s.leases:
        if lease.state is LeaseState.GONE and attempt_began_on(s, lease):
            return HoldJob(HoldReason.GONE, f"instance {lease.instance_id} is not at the market any more")
        if lease.state is LeaseState.WRITTEN_OFF and attempt_began_on(s, lease):
            return HoldJob(HoldReason.GONE, f"instance {lease.instance_id} was written off; it may bill on")
    return None


def _returned_unused(s: Snapshot) -> int:
    """Machines given back since the person last spoke (submit, resume, retry)."""
    return sum(
        1
        for lease in s.leases
        if lease.state is LeaseState.GONE and not s.work_started(lease) and lease.created_at >= s.job.spoken_at
    )


def _halted(s: Snapshot, lease: Lease) -> Action | Lease:
    if s.open(Kind.START):
        return Wait("start sent")
    starts = sent_operations(s, Kind.START, lease)
    looked_s = ((lease.last_seen or 0) - max(starts[-1].created_at, s.awake_since_ms)) / 1000 if starts else 0.0
    started = bool(starts) and starts[-1].state is OpState.DONE and not stopped_before_resume(s, lease)
    if started and looked_s <= s.rules.start_patience_s:
        if stop_failed(s, lease):
            return StopMachine(lease, "the start was only queued, and the stop of it did not happen")
        return lease if may_answer(s, lease) else Wait("starting")
    tried = [op for op in starts if op.created_at >= max(lease.status_since or 0, s.job.spoken_at)]
    in_doubt = any(op.state is OpState.DONE for op in tried) or len(tried) >= STARTS_ASKED
    if in_doubt and may_answer(s, lease) and not silent_for(s, lease, s.rules.start_patience_s):
        return lease  # it answered before this connection broke, whatever the market calls it
    if only_queued(s, lease) or in_doubt:
        if not s.work_started(lease):
            return _destroy(s, lease, "stopped, and does not start again")
        return HoldJob(HoldReason.HOST_STOPPED, f"instance {lease.instance_id} is {lease.status} and does not start")
    if _started_unheard(s, lease, starts):
        return HoldJob(HoldReason.HOST_STOPPED, f"instance {lease.instance_id} ran, never answered, and stopped again")
    if tried and not longer(s, tried[-1].created_at, s.rules.destroy_resend_s):
        return Wait("the start did not happen, and is asked for again")
    return StartMachine(lease)


def _started_unheard(s: Snapshot, lease: Lease, starts: Sequence[Operation]) -> bool:
    """It was started in vain: silent since before the start, asked while it ran, and halted again by itself.

    Another start would cost another `limits.hold`, and so on. Where we slept meanwhile, a few starts are in vain.
    """
    if s.silent_since_ms is None:
        return False
    since = max(s.silent_since_ms, s.job.spoken_at)
    unheard = [op for op in starts if op.state is OpState.DONE and op.created_at >= since]
    if not unheard:
        return False
    asked_ms = (lease.status_since or 0) - max(unheard[-1].created_at, s.awake_since_ms)
    return asked_ms > s.rules.ssh_patience_s * 1000 or len(unheard) >= STARTS_UNHEARD


def _work(s: Snapshot, lease: Lease) -> Action:
    if s.job.state is JobState.QUEUED:
        return Move(Trigger.PROVISION)
    run = s.stage
    if run is None and s.job.state is not JobState.GGUF:
        return StartStage(lease, s.stages[-1])  # all ended while the job was held: the state follows its last stage
    if run is None:
        return Download(lease) if s.job.manifest_sha256 else FetchManifest(lease)
    if s.stage_failure:
        return HoldJob(HoldReason.STAGE_FAILED, f"{run.stage}: {s.stage_failure}")
    asked = [
        op for op in s.operations if op.kind is Kind.STAGE_START and op.nonce == run.nonce and op.lease_id == lease.id
    ]
    if not asked or asked[-1].state is not OpState.DONE:
        return StartStage(lease, run)
    if runner_died(s, asked[-1]):
        # Starts whose answers were lost are settled together with the one that was heard: one start of the runner.
        done = (op for op in asked if op.state is OpState.DONE and op.created_at >= s.job.spoken_at)
        deaths = len({op.resolved_at for op in done})
        if deaths >= STARTS_BEFORE_HOLD:
            return HoldJob(HoldReason.STAGE_FAILED, f"{run.stage}: the runner died {deaths} times without a word")
        return StartStage(lease, run)
    return Watch(lease, run)


def _over_limits(s: Snapshot) -> Action | None:
    """Money drains, it does not cut: at the cap minus the reserve training is brought to a checkpoint and held.

    The reserve is for the way home. Where that costs more (a slow line, a box that drips), a person decides, and resume
    gives it the reserve again.
    """
    is_spent = s.rules.is_spent(s.cost, training=s.is_training)
    if is_spent and s.is_training:  # without a machine, too: another would only be rented to be stopped
        return HoldJob(HoldReason.BUDGET, "limits.cost minus what the way home needs is spent")
    if s.lease is None:
        return None
    if is_spent:
        again = min(s.rules.reserve, s.rules.cost_limit or 0)  # at a price that rose the reserve may be more than all
        if _cost_since(s, s.lease, s.job.spoken_at) >= again:
            return HoldJob(HoldReason.BUDGET, "limits.cost is spent and the model is not home")
    if s.stage is not None and s.loss_ms is not None and s.loss_ms - s.now_ms < 2 * s.rules.rescue_s * 1000:
        return HoldJob(HoldReason.LOSS_NEAR, "less than twice the time that bringing the model home takes is left")
    begun = max(s.lease.created_at, s.job.spoken_at)  # resume gives the same time again
    if s.rules.time_limit_s is not None and s.is_training and longer(s, begun, s.rules.time_limit_s):
        return HoldJob(HoldReason.TIME, "limits.time is over")
    return None


def _may_have_ended(s: Snapshot) -> bool:
    """The training under way may be over since a time when nobody looked: the box is asked before a limit holds it.

    A machine that stopped itself meanwhile is started for that, and what it costs is of the reserve for the way home,
    which a model that is finished has still before it.
    """
    lease, nonces = s.lease, {run.nonce for run in s.stages}
    if lease is None or not s.is_training or s.rules.is_spent(s.cost, training=False):
        return False
    if s.looked_ms is not None and s.looked_ms >= s.awake_since_ms:
        return False
    begun = [op for op in s.operations if op.may_have_begun_work and op.lease_id == lease.id and op.nonce in nonces]
    if not begun or is_told(s, begun[-1]):
        return False
    return not in_vain(s, s.link_down_since_ms, s.rules.ssh_patience_s)


def _let_go(s: Snapshot) -> Action:
    """VERIFIED: every machine of the job goes, by its receipt."""
    if s.nothing_rented:
        return Move(Trigger.CONFIRM_DESTROYED)
    if s.rules.ask_before_destroy and not s.accepted:
        return HoldJob(HoldReason.ASK_DESTROY, "verified; the machine waits for your word")
    lease = _to_end(s)[0]
    if not s.may_go(lease):
        return HoldJob(HoldReason.ARTIFACT_LOST, "no receipt of the current model stands")
    return _destroy(s, lease, "verified")


def _to_end(s: Snapshot) -> list[Lease]:
    """What it has rented, in the order in which it goes: first the one that works. A LOST one is stopped; whether its
    destroy takes is waited for when no other bills.
    """
    lost = [lease for lease in s.held_leases if lease is not s.lease and not (s.lease and s.destroys(lease))]
    return [s.lease, *lost] if s.lease else lost


def _fulfil_wish(s: Snapshot) -> Action:
    """Cancel, discard or abandon. Without work there is nothing to lose; with work only a typed id lets it go.

    What a cancel saves it saves in a hold, which has a price limit: a box that drips would be saved from for ever.
    """
    wish = s.job.wish
    if s.job.state is JobState.VERIFIED:
        return _let_go(s)  # the model is safe: the shortest way to the end is the normal one
    if s.nothing_rented:
        return Move(Trigger.ABANDON if wish is Wish.ABANDON else Trigger.CANCEL, f"wish of {s.job.wish_by}")
    machines = _to_end(s)
    for lease in machines:
        if s.may_go(lease):
            return _destroy(s, lease, f"{wish} of {s.job.wish_by}")
    lease = machines[0]
    if wish in (Wish.DISCARD, Wish.ABANDON):
        return HoldJob(
            HoldReason.CANCEL_WISH, f"instance {lease.instance_id} is not confirmed, or no more: type its id"
        )
    return HoldJob(HoldReason.CANCEL_WISH, "outputs exist that are not verified here")


def _held(s: Snapshot, rule: Hold) -> Action:
    lease = s.lease
    if lease is None:  # what was advised for the machine is not so any more
        trains = s.job.wish is None and s.job.state in TRAINS and s.job.hold_reason not in OUTLASTS
        return (_missing(s) if trains else None) or Wait("held")
    if rule.release is not Release.RUN_TO_LIMIT and not s.work_started(lease):
        return _destroy(s, lease, "nothing was started on it")
    if s.open(Kind.STOP):
        return Wait("held; stop sent")
    spent = _hold_cost(s, lease) >= s.rules.hold_limit
    if lease.status in HALTED and not answers(s, lease):
        may_start = lease.intended == "running" and (spent or rule.release is Release.STOP_NOW)
        if may_start or stop_failed(s, lease):
            return _stop(s, lease, "nobody waits for it to start, and it would bill")
        return Wait("held; the machine is stopped")
    since = s.job.hold_since or s.now_ms
    awake = _cost_since(s, lease, max(since, s.awake_since_ms))
    # One lost connection ends no rescue: not before the hold has cost its limit, nor just after a sleep that cost it.
    # The silence has a patience and the same limit. A box that drips ends it when it has cost what the way home would.
    silence = 0 if s.silent_since_ms is None else _cost_since(s, lease, max(s.silent_since_ms, s.awake_since_ms))
    cut_off = in_vain(s, s.link_down_since_ms, s.rules.ssh_patience_s) or silence >= s.rules.hold_limit
    cut_off = cut_off or awake >= s.rules.hold_limit + s.rules.reserve
    rescuing = is_proven(s, lease) and not (spent and cut_off) and s.saves_failed < SAVES_TRIED
    if rule.release is Release.STOP_NOW and runner_alive(s) and rescuing and not spent:
        return StopStages(lease)
    if rule.rescue is Rescue.EVERYTHING and not s.rescued and s.work_started(lease) and rescuing:
        return Save(lease)
    if rule.release is Release.STOP_NOW or spent:
        return _stop(s, lease, "the hold has cost its limit")
    run = s.stage
    return Watch(lease, run) if run and is_proven(s, lease) else Wait("held")


def _stop(s: Snapshot, lease: Lease, why: str) -> Action:
    """Our last word about its power counts: a stop from before a start of it says nothing about this hold."""
    last = last_power_sent(s, lease)
    if last is None or last.kind is not Kind.STOP or stop_failed(s, lease):
        return StopMachine(lease, why)
    recent = not longer(s, last.created_at, s.rules.start_patience_s)
    return Wait("held; stop sent") if recent else StopMachine(lease, why)


def silence_limit(s: Snapshot, lease: Lease) -> int:
    """Micro-dollars that a silence of ours may cost from now on: what the hold under way has left of `limits.hold`.

    But no less than one lost connection may take, which ends no rescue.
    """
    lost = int(lease.price_per_hour * s.rules.ssh_patience_s / 3600)
    return max(s.rules.hold_limit - _hold_cost(s, lease), min(s.rules.hold_limit, lost))


def _hold_cost(s: Snapshot, lease: Lease) -> int:
    return 0 if s.job.hold_since is None else _cost_since(s, lease, s.job.hold_since)


def _cost_since(s: Snapshot, lease: Lease, since_ms: int) -> int:
    """Micro-dollars that its time has cost since then, at its rate of now."""
    return lease.rate * max(0, s.now_ms - max(since_ms, lease.created_at)) // 3_600_000
