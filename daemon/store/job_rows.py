"""What is stored about one job, gathered for its view, and the plain facts that follow from it."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from daemon.domain.records import Lease, LeaseState

PACE_STEPS = 20  # the last steps whose pace gives the ETA


class Row(Protocol):
    """One row of a table, by column name."""

    def __getitem__(self, column: str, /) -> Any: ...


@dataclass(frozen=True)
class JobRows:
    """Everything stored about one job that its view needs. Rows of lists are in ascending order of id or step."""

    job: Row
    spec: Mapping[str, Any]  # its canonical JSON
    leases: Sequence[Row] = ()
    operations: Sequence[Row] = ()  # open creates, every destroy of a lease that is not gone
    downloads: Sequence[Row] = ()  # of the current manifest
    download_began: Row | None = None  # the event of its newest start
    report: Row | None = None
    metrics: Sequence[Row] = ()  # the last few of the stage that runs
    receipt: Row | None = None  # of the current artifact set, not superseded
    moving: Mapping[str, Any] | None = None  # see transfers.py; only of the process that leads
    mirrored: Row | None = None  # the event of the newest checkpoint or stage that came home
    credit: int | None = None  # micro-dollars
    burn: int = 0  # micro-dollars per hour, all machines


def gather(db: sqlite3.Connection, only: str = "") -> Iterator[JobRows]:
    """Of every job, newest first, or of one: a few queries whatever the number of jobs."""
    of_job = {
        "leases": _by_job(db, "SELECT * FROM leases ORDER BY id"),
        "reports": _by_job(db, "SELECT * FROM box_reports"),
        "operations": _grouped(open_operations(db)),
        "downloads": _by_job(
            db,
            "SELECT d.* FROM downloads d JOIN jobs j ON j.id = d.job_id AND j.manifest_sha256 = d.manifest_sha256",
        ),
        "began": _by_job(
            db,
            "SELECT * FROM events WHERE id IN"
            " (SELECT max(id) FROM events WHERE kind = 'download.started' GROUP BY job_id)",
        ),
        "receipts": _by_job(
            db,
            "SELECT r.* FROM receipts r JOIN jobs j ON j.id = r.job_id AND j.manifest_sha256 = r.manifest_sha256"
            " AND j.attempt = r.attempt WHERE r.id NOT IN (SELECT receipt_id FROM supersessions) ORDER BY r.id",
        ),
        "mirrored": _by_job(
            db,
            "SELECT * FROM events WHERE id IN"
            " (SELECT max(id) FROM events WHERE kind IN ('checkpoint.home', 'stage.home') GROUP BY job_id)",
        ),
        # The last steps of the stage that reported last.
        "metrics": _by_job(
            db,
            "SELECT * FROM (SELECT m.job_id, m.stage, m.step, m.at, m.total, m.loss, m.lr, m.tok_s,"
            " row_number() OVER (PARTITION BY m.job_id ORDER BY m.at DESC, m.step DESC) AS back"
            " FROM metrics m JOIN jobs j ON j.id = m.job_id AND j.attempt = m.attempt"
            " WHERE m.stage = (SELECT x.stage FROM metrics x WHERE x.job_id = j.id AND x.attempt = j.attempt"
            " ORDER BY x.at DESC LIMIT 1)) WHERE back <= ? ORDER BY job_id, step",
            PACE_STEPS,
        ),
    }
    moving = _moving(db)
    credit = meta(db, "credit")
    burn = sum(rate(row) for row in db.execute("SELECT * FROM leases WHERE state IN ('LIVE', 'LOST')"))
    rows = db.execute("SELECT * FROM jobs WHERE ? IN (id, '') ORDER BY rowid DESC", (only,))
    for row in rows:
        of = {table: found.get(row["id"], []) for table, found in of_job.items()}
        yield JobRows(
            job=row,
            leases=of["leases"],
            operations=of["operations"],
            downloads=of["downloads"],
            download_began=of["began"][0] if of["began"] else None,
            report=of["reports"][0] if of["reports"] else None,
            metrics=of["metrics"],
            receipt=of["receipts"][-1] if of["receipts"] else None,
            moving=moving.get(row["id"]),
            mirrored=of["mirrored"][0] if of["mirrored"] else None,
            credit=credit,
            burn=burn,
            spec=json.loads(row["spec_json"]),
        )


def _moving(db: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    """By job: what the process that leads moves now, or moved when it died."""
    leader = db.execute("SELECT epoch FROM leader").fetchone()
    rows = db.execute("SELECT key, value FROM meta WHERE key GLOB 'moving.*'")
    found = {row["key"].partition(".")[2]: json.loads(row["value"]) for row in rows}
    return {job: each for job, each in found.items() if leader is not None and each["epoch"] == leader["epoch"]}


def open_operations(db: sqlite3.Connection) -> list[sqlite3.Row]:
    """Creates that are not resolved, and the destroys of leases that are not gone."""
    return db.execute(
        "SELECT o.* FROM operations o LEFT JOIN leases l ON l.id = o.lease_id"
        " WHERE (o.kind = 'create' AND o.state IN ('INTENT', 'SENT', 'UNKNOWN'))"
        " OR (o.kind = 'destroy' AND l.state IN ('LIVE', 'LOST')) ORDER BY o.id"
    ).fetchall()


def meta(db: sqlite3.Connection, key: str) -> int | None:
    """What the reconcile loop noted last: `credit` in micro-dollars, `last_listing` in UTC milliseconds."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return int(row["value"]) if row is not None and row["value"] else None


def _by_job(db: sqlite3.Connection, query: str, *args: int) -> dict[Any, list[sqlite3.Row]]:
    return _grouped(db.execute(query, args).fetchall())


def _grouped(rows: Sequence[sqlite3.Row]) -> dict[Any, list[sqlite3.Row]]:
    groups: dict[Any, list[sqlite3.Row]] = defaultdict(list)
    for row in rows:
        groups[row["job_id"]].append(row)
    return groups


def is_billing(lease: Row) -> bool:
    return lease["state"] in ("LIVE", "LOST")


def rate(lease: Row) -> int:
    """Micro-dollars per hour that the lease costs now."""
    return _record(lease).rate


def cost_so_far(lease: Row, now: int) -> int:
    """Micro-dollars: the market's own charges once known, until then what our rows say it can have billed."""
    settled = lease["settled_cost"]
    return _record(lease).cost_at(now) if settled is None else int(settled)


def _record(lease: Row) -> Lease:
    values = {f.name: lease[f.name] for f in fields(Lease)}
    return Lease(**values | {"state": LeaseState(lease["state"])})


def current_lease(leases: Sequence[Row]) -> Row | None:
    """The LIVE lease, else the newest that may bill, else the newest."""
    for states in (("LIVE",), ("LOST",), ("GONE", "WRITTEN_OFF")):
        for lease in reversed(leases):
            if lease["state"] in states:
                return lease
    return None


def open_destroy(lease: Row, operations: Sequence[Row]) -> Row | None:
    """The newest destroy of a lease that is not confirmed gone; a refused or never sent one does not count."""
    if not is_billing(lease):
        return None
    sent = [
        op
        for op in operations
        if op["kind"] == "destroy" and op["lease_id"] == lease["id"] and op["state"] not in ("REFUSED", "ABSENT")
    ]
    return sent[-1] if sent else None


def bytes_here(rows: JobRows) -> tuple[int, int]:
    """(bytes on this disk, bytes of the manifest). A set bit of `durable` is one chunk; the last may be shorter."""
    manifest = json.loads(rows.job["manifest_json"] or "{}")
    total = sum(file["size"] for file in manifest.get("files", ()))
    done = 0
    for row in rows.downloads:
        bits = int.from_bytes(row["durable"], "little").bit_count()
        done += row["size"] if row["complete"] else min(row["size"], bits * row["chunk_size"])
    return done, max(total, sum(row["size"] for row in rows.downloads))


def bytes_per_s(rows: JobRows, done: int) -> float | None:
    """What came home since the download began or went on, by its last commit; None before the first."""
    if rows.download_began is None:
        return None
    took_ms = max((row["updated_at"] for row in rows.downloads), default=0) - rows.download_began["at"]
    came = done - json.loads(rows.download_began["body"]).get("here", 0)
    return came / took_ms * 1000 if took_ms > 0 and came > 0 else None


def box_status(report: Row | None) -> Mapping[str, Any]:
    """The box's last status.json; the daemon checked it before it stored it."""
    status: Mapping[str, Any] = json.loads(report["status_json"]) if report and report["status_json"] else {}
    return status
