"""A real database for tests, and the rows most of them begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from daemon.domain.records import Kind, LeaseState, OpState
from daemon.store import jobs, leader, leases, migrate, operations, stages
from daemon.store.database import Database

NOW = 1_790_000_000_000
JOB = "abc123"
INSTANCE = 77
MANIFEST = "m" * 64


def opened(folder: Path, *, lead: bool = True) -> Database:
    """A migrated database that this process leads, unless told otherwise."""
    database = Database(folder / "homeport.db")
    migrate.migrate(database, folder / "backups", NOW)
    if lead:
        leader.take(database, "machine-1", NOW, lambda c, epoch, why: None)
    return database


def add_job(c: Connection, job: str = JOB, **values: Any) -> None:
    row: dict[str, Any] = {
        "id": job,
        "name": job,
        "request_id": job,
        "spec_text": "t",
        "spec_json": "{}",
        "spec_sha256": "s",
        "spec_dir": "/",
    }
    jobs.add(c, NOW, "person", **row | values)
    stages.begin_attempt(c, job, 1, "s", ["SFT", "DPO", "GGUF"], NOW, keep=[], fresh=True)


def add_lease(
    c: Connection, job: str = JOB, instance: int = INSTANCE, state: LeaseState = LeaseState.LIVE, **values: Any
) -> int:
    """A lease made by a create that is DONE."""
    label = f"hp-test-{job}-{instance}"
    create = operations.intend(c, Kind.CREATE, NOW, 1, {}, job_id=job, label=label)
    operations.set_state(c, create, OpState.SENT, NOW)
    operations.set_state(c, create, OpState.DONE, NOW)
    return leases.add(c, operations.get(c, create), instance, label, state, NOW, **values)


def start_stage(c: Connection, lease: int, state: OpState = OpState.DONE, job: str = JOB) -> int:
    operation = operations.intend(c, Kind.STAGE_START, NOW, 1, {}, job_id=job, lease_id=lease, nonce="n", stage="SFT")
    if state is not OpState.INTENT:
        operations.set_state(c, operation, OpState.SENT, NOW)
    if state not in (OpState.INTENT, OpState.SENT):
        operations.set_state(c, operation, state, NOW)
    return operation


def destroy(
    c: Connection, lease: int, permit: str | None, reference: int | None = None, instance: int = INSTANCE
) -> int:
    return operations.intend(
        c,
        Kind.DESTROY,
        NOW,
        1,
        {},
        job_id=JOB,
        lease_id=lease,
        instance_id=instance,
        permit=permit,
        permit_ref=reference,
    )
