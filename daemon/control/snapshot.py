"""What `plan` sees of one job: the database's rows, and the little that only this process knows."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, func, select

from daemon.clock import DaemonClock
from daemon.domain.estimate import Estimate
from daemon.domain.holds import HoldReason
from daemon.domain.money import HOUR_MS
from daemon.domain.records import Job, Lease
from daemon.domain.snapshot import Rules, Snapshot
from daemon.domain.spec import JobSpec
from daemon.settings import Timing
from daemon.store import artifacts, jobs, leader, leases, operations, reports, schema, stages
from daemon.store.database import Database
from remote_payload.contract import Manifest, load

_D, _E = schema.downloads.c, schema.events.c
# Built once: a snapshot is taken at every decision, and building a statement takes longer than running it.
_COMPLETE = select(_D.path).where(
    _D.job_id == bindparam("job"), _D.manifest_sha256 == bindparam("manifest"), _D.complete == 1
)
_LAST = select(func.max(_E.id)).where(_E.job_id == bindparam("job"), _E.kind == bindparam("kind"))
_SAVES_FAILED = select(func.count()).where(
    _E.job_id == bindparam("job"), _E.kind == "save.failed", _E.id > bindparam("after")
)
_RELEASED_BY_PERSON = select(_E.body).where(
    _E.job_id == bindparam("job"), _E.kind == "job.released", _E.id > bindparam("after"), _E.by != "daemon"
)


@dataclass
class Memory:
    """What one actor remembers between decisions. All of it may be lost in a crash: it is found again by looking."""

    link_down_since_ms: int | None = None  # the first call that was lost since one came to its end
    silent_since_ms: int | None = None  # since its box was heard at all, see evidence.silence_began
    asked_market_ms: int | None = None
    nothing_fits_since_ms: int | None = None
    failure: tuple[str, str] | None = None  # nonce, the box's words
    looked_ms: int | None = None  # when the box last said that the current stage has not ended

    def not_after(self, now_ms: int) -> None:
        """The wall clock was set back: what it remembers of a time ahead was at the latest now."""
        for name in ("link_down_since_ms", "silent_since_ms", "asked_market_ms", "nothing_fits_since_ms", "looked_ms"):
            if (at := getattr(self, name)) is not None and at > now_ms:
                setattr(self, name, now_ms)


def take(database: Database, clock: DaemonClock, job_id: str, rules: Rules, memory: Memory) -> Snapshot:
    """One consistent view. Raises NoSuchJob."""
    now = clock.wall_ms()
    memory.not_after(now)
    with database.read() as c:
        job = jobs.get(c, job_id)
        all_leases = tuple(leases.of_job(c, job_id))
        live = next((lease for lease in all_leases if lease.state == "LIVE"), None)
        held = (lease.instance_id for lease in all_leases if lease.is_held)
        tokens = (artifacts.usable_token(c, job, instance, now) for instance in held)
        runs = tuple(stages.of_attempt(c, job))
        current = next((run for run in runs if run.done_at is None), None)
        nonce, words = memory.failure or ("", None)
        return Snapshot(
            now_ms=now,
            awake_since_ms=clock.awake_since_ms(),
            job=job,
            rules=rules,
            lease=live,
            leases=all_leases,
            operations=tuple(operations.of_job(c, job_id)),
            stages=runs,
            receipt=artifacts.current_receipt(c, job),
            loss_ms=loss_ms(c, live, now),
            token=next((token for token in tokens if token is not None), None),
            report=reports.get(c, job_id),
            stage_failure=words if current is not None and current.nonce == nonce else None,
            downloaded=_downloaded(c, job),
            rescued=rescued(c, job),
            silent_since_ms=memory.silent_since_ms,
            saves_failed=_saves_failed(c, job) if job.hold_reason is not None else 0,
            asked_market_ms=memory.asked_market_ms,
            nothing_fits_since_ms=memory.nothing_fits_since_ms,
            accepted=_released(c, job, HoldReason.ASK_DESTROY),
            link_down_since_ms=memory.link_down_since_ms,
            looked_ms=memory.looked_ms,
        )


def rules(spec: JobSpec, estimated: Estimate, timing: Timing) -> Rules:
    return Rules(
        cost_limit=spec.limits.cost,
        time_limit_s=spec.limits.time,
        hold_limit=spec.limits.hold,
        reserve=estimated.reserve,
        rescue_s=estimated.rescue_s,
        ask_before_destroy=spec.destroy == "ask",
        boot_patience_s=timing.boot_patience,
        ssh_patience_s=timing.ssh_patience,
        offline_patience_s=timing.offline_patience,
        start_patience_s=timing.start_patience,
        destroy_resend_s=timing.destroy_resend,
        offer_retry_s=timing.offer_retry,
        offer_patience_s=timing.offer_patience,
    )


def loss_ms(c: Connection, lease: Lease | None, now_ms: int) -> int | None:
    """When what the machine holds may be lost: its contract ends, or the credit at the rate of everything rented."""
    if lease is None:
        return None
    credit = leader.get_meta(c, "credit")
    burn = sum(held.rate for held in leases.held(c))
    ends = [lease.end_ms] if lease.end_ms is not None else []
    if credit is not None and burn > 0:
        ends.append(now_ms + int(credit) * HOUR_MS // burn)
    return min(ends, default=None)


def _downloaded(c: Connection, job: Job) -> bool:
    if not job.manifest_json:
        return False
    complete = set(c.execute(_COMPLETE, {"job": job.id, "manifest": job.manifest_sha256}).scalars())
    return {file.path for file in load(Manifest, job.manifest_json).files} <= complete


# What came after what is told by the order of events: the clock may have been set in between.


def rescued(c: Connection, job: Job) -> bool:
    """Something was saved since the job was last held."""
    return _last(c, job, "job.saved") > _last(c, job, "job.held")


def _saves_failed(c: Connection, job: Job) -> int:
    """Since the job was last held."""
    return c.execute(_SAVES_FAILED, {"job": job.id, "after": _last(c, job, "job.held")}).scalar() or 0


def _released(c: Connection, job: Job, reason: HoldReason) -> bool:
    """The person let go of such a hold since the job came into its state."""
    rows = c.execute(_RELEASED_BY_PERSON, {"job": job.id, "after": _last(c, job, "job.moved")}).scalars()
    return any(json.loads(body)["reason"] == reason for body in rows)


def _last(c: Connection, job: Job, kind: str) -> int:
    """The id of the job's newest event of that kind; 0 when there is none."""
    return c.execute(_LAST, {"job": job.id, "kind": kind}).scalar() or 0
