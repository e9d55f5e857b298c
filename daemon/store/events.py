"""The event log: append-only, one row a fact. Replaying it yields each job's state, hold and attempt."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, insert, select

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
