"""Machines that failed us: remembered, and not rented again soon."""

from __future__ import annotations

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from daemon.store import schema

FORGIVEN_AFTER_MS = 7 * 86_400_000


def add_bad(c: Connection, machine_id: int, reason: str, now_ms: int) -> None:
    row = {"machine_id": machine_id, "reason": reason[:500], "at": now_ms}
    c.execute(insert(schema.bad_machines).values(**row).on_conflict_do_update(index_elements=["machine_id"], set_=row))


def bad(c: Connection, now_ms: int) -> dict[int, str]:
    rows = c.execute(select(schema.bad_machines).where(schema.bad_machines.c.at > now_ms - FORGIVEN_AFTER_MS))
    return {row.machine_id: row.reason for row in rows}
