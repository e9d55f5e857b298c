"""The jobs table. Every change is a compare-and-swap on (id, state, version): LostRace means reload, decide again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from daemon.domain.holds import ANSWERS, HoldReason
from daemon.domain.lifecycle import TERMINAL, JobState
from daemon.domain.records import Job, Wish
from daemon.errors import LostRace, NoSuchJob
from daemon.store import events, schema
from daemon.store.rows import record

_J = schema.jobs.c

# Built once: building a statement takes several times as long as running it.
_BY_ID = select(schema.jobs).where(_J.id == bindparam("id"))
_UNFINISHED = select(schema.jobs).where(_J.state.not_in([s.value for s in TERMINAL])).order_by(_J.created_at)


def add(c: Connection, now_ms: int, by: str, **values: Any) -> None:
    c.execute(
        insert(schema.jobs).values(
            state=JobState.QUEUED.value,
            **dict.fromkeys(("created_at", "updated_at", "state_since", "spoken_at"), now_ms),
            **values,
        )
    )
    events.add(c, "job.submitted", now_ms, job=values["id"], by=by, name=values["name"], spec=values["spec_sha256"])


def get(c: Connection, job: str) -> Job:
    row = c.execute(_BY_ID, {"id": job}).one_or_none()
    if row is None:
        raise NoSuchJob(f"no job {job}", hint="jobctl status")
    return record(Job, row)


def by_request(c: Connection, request_id: str) -> Job | None:
    row = c.execute(select(schema.jobs).where(_J.request_id == request_id)).one_or_none()
    return record(Job, row) if row else None


def unfinished(c: Connection) -> list[Job]:
    return [record(Job, row) for row in c.execute(_UNFINISHED)]


def ended_since(c: Connection, ms: int) -> list[Job]:
    query = select(schema.jobs).where(_J.state.in_([s.value for s in TERMINAL]), _J.state_since >= ms)
    return [record(Job, row) for row in c.execute(query.order_by(_J.created_at))]


def names(c: Connection) -> set[str]:
    """Names of unfinished jobs."""
    return {job.name for job in unfinished(c)}


def ids(c: Connection) -> set[str]:
    return set(c.execute(select(_J.id)).scalars())


def refuse_changed(c: Connection, job: Job) -> None:
    """Raises LostRace when the row is not the one any more that `job` was read from."""
    if get(c, job.id).version != job.version:
        raise LostRace(f"job {job.id} changed since version {job.version}")


def change(c: Connection, job: Job, now_ms: int, epoch: int | None, **values: Any) -> None:
    """Swap `values` in, if the row is still the one that `job` was read from. Raises LostRace."""
    changed = c.execute(
        update(schema.jobs)
        .where(_J.id == job.id, _J.state == job.state.value, _J.version == job.version)
        .values(version=job.version + 1, epoch=epoch or 0, updated_at=now_ms, **values)
    )
    if changed.rowcount != 1:
        raise LostRace(f"job {job.id} changed since version {job.version}")


def move(
    c: Connection, job: Job, to: JobState, now_ms: int, epoch: int | None, *, by: str = "daemon", **values: Any
) -> None:
    """Take one edge, with its event. Any hold ends: moving on is what ends it."""
    if to in TERMINAL:
        values.setdefault("finished_at", now_ms)
        values.setdefault("wish", None)
    if job.hold_reason:
        values |= {"hold_reason": None, "hold_detail": None, "hold_since": None, "hold_by": None}
        events.add(c, "job.released", now_ms, job=job.id, by=by, reason=job.hold_reason)
    change(c, job, now_ms, epoch, state=to.value, state_since=now_ms, **values)
    events.add(c, "job.moved", now_ms, job=job.id, by=by, was=job.state, to=to)


def hold(
    c: Connection,
    job: Job,
    reason: HoldReason,
    detail: str,
    now_ms: int,
    epoch: int | None,
    *,
    by: str = "daemon",
    since: int | None = None,
) -> None:
    """Held from now on, or `since` then: that of the hold whose place, and price limit, this one takes."""
    values: dict[str, Any] = {"hold_reason": reason.value, "hold_detail": detail, "hold_by": by}
    values["hold_since"] = now_ms if since is None else since
    if reason in ANSWERS:
        values["wish"] = None
    elif job.hold_reason is HoldReason.CANCEL_WISH:  # whose answer that hold was, and this one is not
        values["wish"] = Wish.CANCEL.value
    change(c, job, now_ms, epoch, **values)
    events.add(c, "job.held", now_ms, job=job.id, by=by, reason=reason, detail=detail)


def release(c: Connection, job: Job, now_ms: int, epoch: int | None, *, by: str) -> None:
    change(c, job, now_ms, epoch, hold_reason=None, hold_detail=None, hold_since=None, hold_by=None, spoken_at=now_ms)
    events.add(c, "job.released", now_ms, job=job.id, by=by, reason=job.hold_reason)


def wish(c: Connection, job: Job, what: Wish, now_ms: int, epoch: int | None, *, by: str) -> None:
    """Store what the person wants; a hold does not stand in its way."""
    values: dict[str, Any] = {"wish": what.value, "wish_by": by}
    if job.hold_reason:
        values |= {"hold_reason": None, "hold_detail": None, "hold_since": None, "hold_by": None}
        events.add(c, "job.released", now_ms, job=job.id, by=by, reason=job.hold_reason)
    change(c, job, now_ms, epoch, **values)
    events.add(c, "job.wish", now_ms, job=job.id, by=by, wish=what)
