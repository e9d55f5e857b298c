"""What the box said last, and the metrics it sent: upserts, since a resumed stage repeats steps."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects.sqlite import insert

from daemon.domain.records import BoxReport
from daemon.store import schema
from daemon.store.rows import record

_B = schema.box_reports.c
_OF_JOB = select(schema.box_reports).where(_B.job_id == bindparam("job"))


def get(c: Connection, job: str) -> BoxReport | None:
    row = c.execute(_OF_JOB, {"job": job}).one_or_none()
    return record(BoxReport, row) if row else None


def put(c: Connection, job: str, attempt: int, **values: Any) -> None:
    """Change the given columns; another attempt starts with offsets at zero."""
    known = get(c, job)
    if known is not None and known.attempt != attempt:
        values = {"events_offset": 0, "log_offset": 0, "status_json": None, **values}
    row = {"job_id": job, "attempt": attempt, **values}
    c.execute(insert(schema.box_reports).values(**row).on_conflict_do_update(index_elements=["job_id"], set_=row))


def add_steps(c: Connection, job: str, attempt: int, steps: list[dict[str, Any]]) -> None:
    for step in steps:
        row = {
            "job_id": job,
            "attempt": attempt,
            "stage": str(step["stage"]),
            "step": int(step["step"]),
            "at": int(float(step["t"]) * 1000),
            "total": _number(step, "total", int),
            "loss": _number(step, "loss", float),
            "lr": _number(step, "lr", float),
            "tokens": _number(step, "tokens", int),
            "tok_s": _number(step, "tok_s", float),
            "body": json.dumps(step),
        }
        c.execute(
            insert(schema.metrics)
            .values(**row)
            .on_conflict_do_update(index_elements=["job_id", "attempt", "stage", "step"], set_=row)
        )


def _number(step: dict[str, Any], key: str, kind: type[int] | type[float]) -> int | float | None:
    value = step.get(key)
    return kind(value) if isinstance(value, int | float) else None
