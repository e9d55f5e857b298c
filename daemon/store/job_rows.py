"""What is stored about one job, gathered for its view, and the plain facts that follow from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from daemon.domain.records import Lease, LeaseState


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
