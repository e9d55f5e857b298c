"""The operations table: what costs money, deletes, or starts something remote, written down before it is done."""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from daemon.domain.records import Kind, Operation, OpState
from daemon.errors import StoreError
from daemon.store import events, schema
from daemon.store.rows import record

_O = schema.operations.c
OPEN = tuple(s.value for s in OpState if s.is_open)
_KEY = re.compile(r'("\w*api_key"\s*:\s*)"[^"]*"')

# Built once: building a statement takes several times as long as running it.
_BY_ID = select(schema.operations).where(_O.id == bindparam("id"))
_OF_JOB = select(schema.operations).where(_O.job_id == bindparam("job")).order_by(_O.id)
_OF_LEASE = select(schema.operations).where(_O.lease_id == bindparam("lease")).order_by(_O.id)
_OPEN = select(schema.operations).where(_O.state.in_(OPEN)).order_by(_O.id)
_CREATES = select(schema.operations).where(_O.kind == Kind.CREATE.value)


def intend(c: Connection, kind: Kind, now_ms: int, epoch: int | None, request: dict[str, Any], **values: Any) -> int:
    """INTENT. Triggers refuse a destroy without permit, a create while rented, and the like (IntegrityError)."""
    result = c.execute(
        insert(schema.operations).values(
            kind=kind.value,
            state=OpState.INTENT.value,
            epoch=epoch or 0,
            request=json.dumps(request),
            created_at=now_ms,
            **values,
        )
    )
    operation = int(result.inserted_primary_key[0])  # type: ignore[index]
    events.add(
        c,
        f"{kind}.intent",
        now_ms,
        job=values.get("job_id"),
        lease=values.get("lease_id"),
        operation=operation,
        **{k: values[k] for k in ("label", "permit", "stage", "instance_id") if values.get(k) is not None},
    )
    return operation


def get(c: Connection, operation: int) -> Operation:
    return record(Operation, c.execute(_BY_ID, {"id": operation}).one())


def set_state(c: Connection, operation: int, state: OpState, now_ms: int, **values: Any) -> None:
    """Move one operation on, with its event. Raises StoreError when the row is not there."""
    if state is OpState.SENT:
        values["sent_at"] = now_ms
    elif not state.is_open:
        values["resolved_at"] = now_ms
    changed = c.execute(update(schema.operations).where(_O.id == operation).values(state=state.value, **values))
    if changed.rowcount != 1:
        raise StoreError(f"operation {operation} does not exist")
    row = get(c, operation)
    events.add(
        c,
        f"{row.kind}.{state.value.lower()}",
        now_ms,
        job=row.job_id,
        lease=row.lease_id,
        operation=operation,
        **({"error": row.error} if row.error else {}),
    )


def store_reply(c: Connection, operation: int, status: int | None, body: str) -> None:
    """The answer as it came, before anybody interprets it; only the keys in it are left out."""
    kept = _KEY.sub(r'\1"..."', body)[:65_536]
    c.execute(update(schema.operations).where(_O.id == operation).values(reply_status=status, reply=kept))


def count_absence(c: Connection, operation: Operation, awake_s: float) -> None:
    c.execute(
        update(schema.operations)
        .where(_O.id == operation.id)
        .values(absent_count=operation.absent_count + 1, absent_awake_s=operation.absent_awake_s + awake_s)
    )


def open_ones(c: Connection, job: str | None = None) -> list[Operation]:
    found = [record(Operation, row) for row in c.execute(_OPEN)]
    return found if job is None else [op for op in found if op.job_id == job]


def of_job(c: Connection, job: str) -> list[Operation]:
    return [record(Operation, row) for row in c.execute(_OF_JOB, {"job": job})]


def of_lease(c: Connection, lease: int) -> list[Operation]:
    return [record(Operation, row) for row in c.execute(_OF_LEASE, {"lease": lease})]


def creates_by_label(c: Connection) -> dict[str, Operation]:
    """Every create there ever was, by its label: a late arrival is recognised for ever."""
    return {op.label: op for op in (record(Operation, row) for row in c.execute(_CREATES)) if op.label}
