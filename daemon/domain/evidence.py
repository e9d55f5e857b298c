"""What the rows and the last looks say of a job's machine and its runner: pure readings of a snapshot.

Each answers one question of `plan`, which judges. The market's word of a machine's status lags, the box's own is newer;
and where nobody looked, nothing is known.
"""

from __future__ import annotations

from itertools import pairwise

from daemon.domain.market import UNREACHABLE
from daemon.domain.records import Kind, Lease, Operation
from daemon.domain.snapshot import Snapshot


def is_ready(s: Snapshot, lease: Lease) -> bool:
    """It has proven itself, and everything that this attempt needs was put there."""
    return lease.host_key is not None and lease.provisioned == s.job.attempt


def may_answer(s: Snapshot, lease: Lease) -> bool:
    """It may run, long before the market says so: only its box knows."""
    return is_ready(s, lease) and lease.intended == "running" and not s.open(Kind.STOP)


def answers(s: Snapshot, lease: Lease) -> bool:
    """It may, and was not found silent: asked before the market is believed, which calls what runs exited for long."""
    return may_answer(s, lease) and s.link_down_since_ms is None


BLIND_S = 90.0  # three passes without a trusted listing


def silence_began(since_ms: int | None, now_ms: int, *, heard: bool, last_seen_ms: int | None) -> int:
    """When a box fell silent of which now another call is lost, as far as was known `since_ms`.

    Now, where it was `heard` meanwhile, as in a transfer of hours; or where no listing came either: then nobody answers
    us, and we are the silent ones.
    """
    blind = now_ms - (last_seen_ms or 0) > BLIND_S * 1000
    return now_ms if since_ms is None or heard or blind else since_ms


def silent_for(s: Snapshot, lease: Lease, seconds: float) -> bool:
    """Its box was asked for so long and did not answer: not before this status, nor in a hold, where nobody asks."""
    since = s.silent_since_ms
    return since is not None and in_vain(s, max(since, lease.status_since or 0, s.job.spoken_at), seconds)


def is_proven(s: Snapshot, lease: Lease) -> bool:
    """We know the machine, and as far as we know it runs: one that only the market does not see may still answer."""
    may_run = lease.is_running or lease.status in UNREACHABLE or answers(s, lease)
    return lease.host_key is not None and may_run


def attempt_began_on(s: Snapshot, lease: Lease) -> bool:
    """Stages of this attempt ran there: without the machine they have to be begun again, which a person decides.

    One kept from an earlier attempt has its nonce and ran elsewhere, so the machine must have been made ready for this.
    """
    nonces = {run.nonce for run in s.stages}
    return lease.provisioned == s.job.attempt and any(
        op.may_have_begun_work and op.lease_id == lease.id and op.nonce in nonces for op in s.operations
    )


def sent_operations(s: Snapshot, kind: Kind, lease: Lease) -> list[Operation]:
    """What left this process; an intent that a crash cut short asked nobody."""
    return [op for op in s.operations if op.kind is kind and op.lease_id == lease.id and op.sent_at is not None]


def power_asked(s: Snapshot, lease: Lease) -> list[Operation]:
    """Its starts and stops, in order."""
    return [op for op in s.operations if op.kind in (Kind.START, Kind.STOP) and op.lease_id == lease.id]


def last_power_sent(s: Snapshot, lease: Lease) -> Operation | None:
    """The last of them that left this process."""
    return next((op for op in reversed(power_asked(s, lease)) if op.sent_at is not None), None)


def only_queued(s: Snapshot, lease: Lease) -> bool:
    """A start since the person last spoke was stopped at once. Listings may have seen both, as a change of its status.

    Nothing else stops a machine whose job is not held.
    """
    asked = power_asked(s, lease)
    return any(
        start.kind is Kind.START and then.kind is Kind.STOP and start.created_at >= s.job.spoken_at
        for start, then in pairwise(asked)
    )


def stop_failed(s: Snapshot, lease: Lease) -> bool:
    """Our last word about its power was a stop, and a listing since then has it meant to run: it bills, or may soon."""
    asked = power_asked(s, lease)
    if not asked or asked[-1].kind is not Kind.STOP or asked[-1].state.is_open:
        return False
    return lease.intended == "running" and (lease.last_seen or 0) > asked[-1].created_at


def stopped_before_resume(s: Snapshot, lease: Lease) -> bool:
    """Our last word about its power was the stop of a hold that the person has ended since."""
    last = last_power_sent(s, lease)
    return last is not None and last.kind is Kind.STOP and last.created_at < s.job.spoken_at


def runner_alive(s: Snapshot) -> bool:
    """By the box's last word."""
    return s.report is not None and s.report.alive == 1


def runner_may_live(s: Snapshot, lease: Lease) -> bool:
    """Something was started there, and the box has not said since that nothing runs."""
    started = [op for op in s.operations if op.may_have_begun_work and op.lease_id == lease.id]
    return bool(started) and not runner_died(s, started[-1])


def runner_died(s: Snapshot, started: Operation) -> bool:
    """The box answered that nothing runs, and that was after our last start."""
    report = s.report
    if report is None or report.alive != 0 or report.seen_at is None:
        return False
    began = started.resolved_at or started.created_at
    if (began > s.now_ms) != (report.seen_at > s.now_ms):  # the clock was set back in between: the later one is past
        return began > s.now_ms
    return report.seen_at > began


def is_told(s: Snapshot, started: Operation) -> bool:
    """That nothing runs there was said in a look for the end of this very stage, not of the one before it."""
    before_ms = max((run.done_at or 0 for run in s.stages), default=0)
    return runner_died(s, started) and s.report is not None and (s.report.seen_at or 0) > before_ms


def in_vain(s: Snapshot, since_ms: int | None, seconds: float) -> bool:
    """Patience is over: we were there and looked for so long. While this computer slept, nobody did."""
    return since_ms is not None and longer(s, max(since_ms, s.awake_since_ms), seconds)


def longer(s: Snapshot, since_ms: int | None, seconds: float) -> bool:
    """Ago, whether anybody looked or not."""
    return since_ms is not None and s.now_ms - since_ms > seconds * 1000
