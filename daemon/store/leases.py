"""The leases table: our rows about instances; they outlive them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from daemon.domain.billing import afterwards, between
from daemon.domain.market import HALTED, Instance
from daemon.domain.records import Kind, Lease, LeaseState, Operation, OpState
from daemon.store import events, schema
from daemon.store.rows import record

_L = schema.leases.c
HELD = (LeaseState.LIVE.value, LeaseState.LOST.value)
SHOWS_MS = 120_000  # a listing so soon after a start may not show it yet

# Built once: building a statement takes several times as long as running it.
_BY_ID = select(schema.leases).where(_L.id == bindparam("id"))
_BY_INSTANCE = select(schema.leases).where(_L.instance_id == bindparam("instance")).order_by(_L.id.desc())
_LIVE = select(schema.leases).where(_L.job_id == bindparam("job"), _L.state == LeaseState.LIVE.value)
_OF_JOB = select(schema.leases).where(_L.job_id == bindparam("job")).order_by(_L.id)
_HELD = select(schema.leases).where(_L.state.in_(HELD)).order_by(_L.id)
_RECHECK_DUE = select(schema.leases).where(_L.state == LeaseState.GONE.value, _L.recheck_at <= bindparam("now"))


def add(
    c: Connection,
    operation: Operation | None,
    instance_id: int,
    label: str,
    state: LeaseState,
    now_ms: int,
    *,
    job: str | None = None,
    since: int | None = None,
    **values: Any,
) -> int:
    """A lease for what `operation` made, with its event; None: nobody knows what made it, `job` is by its label.

    It counts `since` then, by default since the create was sent, or now.
    """
    job = operation.job_id if operation else job
    if since is None:
        since = operation.sent_at or now_ms if operation else now_ms
    result = c.execute(
        insert(schema.leases).values(
            job_id=job,
            operation_id=operation.id if operation else None,
            instance_id=instance_id,
            label=label,
            state=state.value,
            created_at=since,
            **values,
        )
    )
    lease = int(result.inserted_primary_key[0])  # type: ignore[index]
    events.add(c, "lease.created", now_ms, job=job, lease=lease, instance=instance_id, label=label, state=state)
    return lease


def get(c: Connection, lease: int) -> Lease:
    return record(Lease, c.execute(_BY_ID, {"id": lease}).one())


def live(c: Connection, job: str) -> Lease | None:
    row = c.execute(_LIVE, {"job": job}).one_or_none()
    return record(Lease, row) if row else None


def of_job(c: Connection, job: str) -> list[Lease]:
    return [record(Lease, row) for row in c.execute(_OF_JOB, {"job": job})]


def held(c: Connection) -> list[Lease]:
    """Every lease something may stand behind, orphans included."""
    return [record(Lease, row) for row in c.execute(_HELD)]


def by_instance(c: Connection, instance_id: int) -> Lease | None:
    row = c.execute(_BY_INSTANCE, {"instance": instance_id}).first()
    return record(Lease, row) if row else None


def written_off(c: Connection) -> set[int]:
    """Instances that their person stopped counting on."""
    return set(c.execute(select(_L.instance_id).where(_L.state == LeaseState.WRITTEN_OFF.value)).scalars())


def change(c: Connection, lease: int, **values: Any) -> None:
    c.execute(update(schema.leases).where(_L.id == lease).values(**values))


def set_state(c: Connection, lease: Lease, state: LeaseState, now_ms: int, *, why: str, by: str = "daemon") -> None:
    values: dict[str, Any] = {"state": state.value}
    if state in (LeaseState.GONE, LeaseState.WRITTEN_OFF):
        values |= {"gone_at": now_ms, "cost": lease.cost, "observed_ms": now_ms}
        if lease.is_held:
            started = _started_since(c, lease, lease.observed_ms or lease.created_at)
            values["cost"] += afterwards(lease, now_ms, started=started)
    else:
        # What it bills from here on is in no settled cost.
        values |= {"gone_at": None, "recheck_at": None, "absent_count": 0, "absent_first": None, "settled_cost": None}
    change(c, lease.id, **values)
    events.add(
        c,
        "lease.state",
        now_ms,
        job=lease.job_id,
        lease=lease.id,
        by=by,
        state=state,
        why=why,
        instance=lease.instance_id,
    )


def observe(c: Connection, lease: Lease, seen: Instance, now_ms: int) -> None:
    """What a trusted listing says about it, and what the time since the last one may have cost."""
    price = seen.price_per_hour if seen.price_per_hour is not None else lease.price_per_hour
    storage = seen.storage_per_hour if seen.storage_per_hour is not None else lease.storage_per_hour
    halted = seen.status in HALTED
    started = halted and _started_since(c, lease, lease.observed_ms or lease.created_at)
    span = between(lease, seen.status, price, storage, now_ms, started=started)
    changed = seen.status != lease.status or seen.intended_status != lease.intended
    values: dict[str, Any] = {
        "status": seen.status,
        "intended": seen.intended_status,
        "status_msg": seen.status_msg[:500],
        "machine_id": seen.machine_id or lease.machine_id,
        "host_id": seen.host_id or lease.host_id,
        "direct": f"{seen.direct[0]}:{seen.direct[1]}" if seen.direct else None,
        "proxy": f"{seen.proxy[0]}:{seen.proxy[1]}" if seen.proxy else None,
        "start_ms": seen.start_ms or lease.start_ms,
        "end_ms": seen.end_ms or lease.end_ms,
        "price_per_hour": price,
        "storage_per_hour": storage,
        "gpu_util": seen.gpu_util,
        "running_ms": lease.running_ms + span.running_ms,
        "idle_ms": lease.idle_ms + span.idle_ms,
        "cost": lease.cost + span.cost,
        "observed_ms": now_ms,
        "last_seen": now_ms,
        "absent_count": 0,
        "absent_first": None,
    }
    if seen.gpu_name:
        values |= {"gpu_name": seen.gpu_name, "num_gpus": seen.num_gpus}
    if changed:
        values["status_since"] = now_ms
        events.add(
            c,
            "lease.status",
            now_ms,
            job=lease.job_id,
            lease=lease.id,
            status=seen.status,
            was=lease.status,
            intended=seen.intended_status,
            message=seen.status_msg[:200],
        )
    change(c, lease.id, **values)


def recount(c: Connection, lease: Lease, charged: int, now_ms: int) -> None:
    """It has cost less until now than we counted: `charged` micro-dollars, by the market's own charges."""
    counted = lease.time_cost_at(now_ms)
    if charged < counted:
        change(c, lease.id, cost=charged, observed_ms=now_ms if lease.is_held else lease.observed_ms)
        events.add(c, "lease.recounted", now_ms, job=lease.job_id, lease=lease.id, counted=counted, charged=charged)


def price_at_least(c: Connection, lease: Lease, price: int | None) -> None:
    """What it bills since the last listing that showed it is no less than `price` micro-dollars an hour."""
    if price is not None and price > lease.price_per_hour:
        change(c, lease.id, price_per_hour=price)


def _started_since(c: Connection, lease: Lease, since_ms: int) -> bool:
    """Whether it may have been started then: a start left for it, which no listing before shows for certain.

    One that the market refused started nothing.
    """
    o = schema.operations.c
    sent = select(o.id).where(
        o.lease_id == lease.id,
        o.kind == Kind.START.value,
        o.sent_at >= since_ms - SHOWS_MS,
        o.state != OpState.REFUSED.value,
    )
    return c.execute(sent.limit(1)).first() is not None


def miss(c: Connection, lease: Lease, now_ms: int) -> None:
    """A trusted listing does not show it."""
    change(c, lease.id, absent_count=lease.absent_count + 1, absent_first=lease.absent_first or now_ms)


def recheck_due(c: Connection, now_ms: int) -> list[Lease]:
    """Leases confirmed gone a day ago, to be looked for once more."""
    return [record(Lease, row) for row in c.execute(_RECHECK_DUE, {"now": now_ms})]
