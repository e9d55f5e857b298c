"""The flight recorder: every row about one job as it is stored, but for what is secret. Standard library only."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from daemon.store.readonly import connection

# Table -> which rows are the job's, in which order. Downloads and box reports are progress, not history.
OF_JOB = {
    "jobs": "id = ? ORDER BY id",
    "attempts": "job_id = ? ORDER BY n",
    "stages": "job_id = ? ORDER BY attempt, stage",
    "leases": "job_id = ? ORDER BY id",
    "operations": "job_id = ? ORDER BY id",
    "events": "job_id = ? ORDER BY id",
    "receipts": "job_id = ? ORDER BY id",
    "tokens": "job_id = ? ORDER BY id",
    "metrics": "job_id = ? ORDER BY rowid",
}
SECRET = {"challenge"}  # columns, and keys of stored requests
MADE_OF_ROWS = {"sample"}  # what a model says to a prompt may be a row it was trained on


def tables(database: Path, job: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of `job` (a whole id), by table. Raises StoreError."""
    with connection(database) as db:
        return {
            table: [_public(row) for row in db.execute(f"SELECT * FROM {table} WHERE {where}", (job,))]  # noqa: S608 - ours
            for table, where in OF_JOB.items()
        }


def secrets(database: Path) -> set[str]:
    """What the database holds and nobody else may: the secrets that machines prove themselves with."""
    with connection(database) as db:
        found = {row["challenge"] for row in db.execute("SELECT challenge FROM leases WHERE challenge IS NOT NULL")}
        for row in db.execute("SELECT request FROM operations WHERE kind = 'create'"):
            found.add(json.loads(row["request"]).get("challenge"))
    return found - {None}


def _public(row: sqlite3.Row) -> dict[str, Any]:
    return {name: _without(name, row[name]) for name in row.keys()}  # noqa: SIM118 - a Row is no dict


def _without(name: str, value: Any) -> Any:
    """`value` without what its name, or a key inside it, says must not be shown. JSON in text becomes JSON."""
    if name in SECRET and value is not None:
        return "[secret]"
    if name in MADE_OF_ROWS and value:
        return "[text of the model]"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str) and value[:1] in "{[":
        try:
            value = json.loads(value)
        except ValueError:  # text that only begins like JSON
            return value
    if isinstance(value, dict):
        return {key: _without(key, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without(name, inner) for inner in value]
    return value
