"""The event log: append-only, one row a fact. Replaying it yields each job's state, hold and attempt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select

from daemon.store import schema


def add(
    c: Connection,
    kind: str,
    now_ms: int,
    *,
    job: str | None = None,
    lease: int | None = None,
    by: str = "daemon",
    **body: Any,
) -> int:
    result = c.execute(
        insert(schema.events).values(
            job_id=job, lease_id=lease, at=now_ms, kind=kind, by=by, body=json.dumps(body, default=str)
        )
    )
    return int(result.inserted_primary_key[0])  # type: ignore[index]


@dataclass(frozen=True)
class Noted:
    id: int
    kind: str
    body: dict[str, Any]


def newest(c: Connection, job: str, kinds: Sequence[str]) -> Noted | None:
    """The last event of `job` that is of one of `kinds`."""
    e = schema.events.c
    asked = select(e.id, e.kind, e.body).where(e.job_id == job, e.kind.in_(kinds)).order_by(e.id.desc()).limit(1)
    row = c.execute(asked).one_or_none()
    return Noted(row.id, row.kind, json.loads(row.body)) if row else None


def restored_since(c: Connection, operation: int) -> bool:
    """The database was put back after the operation was intended."""
    e = schema.events.c
    of = func.json_extract(e.body, "$.operation") == operation
    intended = select(func.min(e.id)).where(of).scalar_subquery()
    found = select(e.id).where(e.kind == "daemon.restored", e.id > intended).limit(1)
    return c.execute(found).one_or_none() is not None


def replay(c: Connection, job: str) -> dict[str, Any]:
    """State, hold reason and attempt of `job` from its events alone."""
    found: dict[str, Any] = {"state": None, "hold": None, "attempt": None}
    rows = c.execute(
        select(schema.events.c.kind, schema.events.c.body)
        .where(schema.events.c.job_id == job)
        .order_by(schema.events.c.id)
    )
    for kind, body in rows:
        fields = json.loads(body)
        if kind == "job.submitted":
            found = {"state": "QUEUED", "hold": None, "attempt": 1}
        elif kind == "job.moved":
            found["state"] = fields["to"]
        elif kind == "job.held":
            found["hold"] = fields["reason"]
        elif kind == "job.released":
            found["hold"] = None
        elif kind == "job.attempt":
            found["attempt"] = fields["n"]
    return found
