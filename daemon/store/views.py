"""What a person or a program is told about a job: plain dictionaries, ready for JSON, made from rows by pure functions.

Enums upper case, times ISO-8601 UTC with a Z, money decimal strings in `currency`. What is in flight (renting,
downloading, a destroy not yet confirmed) is derived here from operations, leases and downloads: the state never says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TypedDict

from daemon.domain import money
from daemon.domain.holds import HOLDS, HoldReason
from daemon.domain.lifecycle import MAIN_LINE, TERMINAL, JobState
from daemon.domain.records import Lease, LeaseState

CURRENCY = "USD"


class Row(Protocol):
    """One row of a table, by column name."""

    def __getitem__(self, column: str, /) -> Any: ...


class Activity(StrEnum):
    """What is going on beside the state."""

    SEARCHING = "SEARCHING"  # no machine yet, none asked for
    RENTING = "RENTING"  # a create is on its way
    UNANSWERED = "UNANSWERED"  # the reply of a create was lost: it is looked for, never sent again
    BOOTING = "BOOTING"
    SETTING_UP = "SETTING_UP"
    STARTING = "STARTING"
    OUT_OF_CONTACT = "OUT_OF_CONTACT"
    STOPPED = "STOPPED"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    RETURNING = "RETURNING"
    DESTROYING = "DESTROYING"  # requested, not confirmed: may bill


class Whereabouts(StrEnum):
    HERE = "HERE"  # on this computer's disk, verified
    BOX = "BOX"  # on the rented machine only, or not proven here yet
    NOWHERE = "NOWHERE"


class HoldView(TypedDict):
    reason: str
    meaning: str
    detail: str
    since: str
    by: str
    advice: str
    commands: list[str]


class Progress(TypedDict):
    stage: str
    done: int
    total: int
    unit: str  # STEPS or BYTES


class LeaseView(TypedDict):
    lease: int
    instance: int
    job: str | None
    state: str
    status: str | None  # the market's word, last trusted listing
    status_message: str
    gpu: str
    price_per_hour: str  # running, disk included
    storage_per_hour: str  # stopped
    rate: str  # what it bills now, as far as we know
    cost: str
    currency: str
    last_seen: str | None
    contract_ends: str | None
    gpu_util: float | None
    destroy_requested: str | None  # since when; null when none is open


class Safety(TypedDict):
    where: str
    safe: bool
    text: str
    path: str | None


class LossDeadline(TypedDict):
    at: str
    cause: str  # CONTRACT_ENDS or CREDIT_ENDS


class JobView(TypedDict):
    id: str
    name: str
    state: str
    activity: str | None
    hold: HoldView | None
    wish: str | None
    attempt: int
    model: str
    stages: list[str]  # those the spec asks for, in order
    created_at: str
    state_since: str
    finished_at: str | None
    progress: Progress | None
    loss: float | None
    lr: float | None
    tok_s: float | None
    eta_s: int | None  # until the end of the stage that runs
    checkpoint_step: int | None
    box_seen_at: str | None
    out_of_contact_since: str | None
    lease: LeaseView | None
    cost: str
    cost_limit: str | None
    currency: str
    verification: str  # FULL or HASH, as the spec asks
    safety: Safety
    loss_deadline: LossDeadline | None


@dataclass(frozen=True)
class JobRows:
    """Everything stored about one job that its view needs. Rows of lists are in ascending order of id or step."""

    job: Row
    leases: Sequence[Row] = ()
    operations: Sequence[Row] = ()  # open creates, every destroy of a lease that is not gone
    downloads: Sequence[Row] = ()  # of the current manifest
    report: Row | None = None
    metrics: Sequence[Row] = ()  # the last few of the stage that runs
    receipt: Row | None = None  # of the current artifact set, not superseded
    credit: int | None = None  # micro-dollars
    burn: int = 0  # micro-dollars per hour, all machines
    spec: Mapping[str, Any] = field(default_factory=dict)


def iso(ms: int | None) -> str | None:
    """UTC milliseconds as ISO-8601 with a Z. Without datetime, whose import costs more than a screen."""
    return None if ms is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms // 1000))


def job_view(rows: JobRows, now: int) -> JobView:
    """The whole answer about one job at wall time `now` (UTC milliseconds)."""
    job, status = rows.job, _status(rows.report)
    lease = current_lease(rows.leases)
    last = rows.metrics[-1] if rows.metrics else None
    limit = (rows.spec.get("limits") or {}).get("cost")
    safety = model_safety(rows)
    return JobView(
        id=job["id"],
        name=job["name"],
        state=job["state"],
        activity=activity(rows),
        hold=hold_view(job),
        wish=job["wish"],
        attempt=job["attempt"],
        model=model_name(rows.spec),
        stages=[stage for stage in ("SFT", "DPO") if rows.spec.get(stage.lower())] + ["GGUF"],
        created_at=iso(job["created_at"]) or "",
        state_since=iso(job["state_since"] or job["created_at"]) or "",
        finished_at=iso(job["finished_at"]),
        progress=progress(rows, status),
        loss=last["loss"] if last else None,
        lr=last["lr"] if last else None,
        tok_s=last["tok_s"] if last else None,
        eta_s=eta_s(rows.metrics) if last and last["stage"] == job["state"] else None,
        checkpoint_step=status.get("checkpoint_step") or None,
        box_seen_at=iso(rows.report["seen_at"]) if rows.report else None,
        out_of_contact_since=iso(rows.report["lost_since"]) if rows.report else None,
        lease=lease_view(lease, rows.operations, now) if lease else None,
        cost=money.decimal_string(sum(cost_so_far(row, now) for row in rows.leases)),
        cost_limit=money.decimal_string(limit) if isinstance(limit, int) else None,
        currency=CURRENCY,
        verification=str((rows.spec.get("verify") or {}).get("level", "full")).upper(),
        safety=safety,
        loss_deadline=None if safety["safe"] or lease is None else loss_deadline(lease, rows.credit, rows.burn, now),
    )


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


def lease_view(lease: Row, operations: Sequence[Row], now: int) -> LeaseView:
    destroy = open_destroy(lease, operations)
    count = f"{lease['num_gpus']}x " if lease["num_gpus"] > 1 else ""
    return LeaseView(
        lease=lease["id"],
        instance=lease["instance_id"],
        job=lease["job_id"],
        state=lease["state"],
        status=lease["status"],
        status_message=lease["status_msg"] or "",
        gpu=f"{count}{lease['gpu_name']}",
        price_per_hour=money.decimal_string(lease["price_per_hour"]),
        storage_per_hour=money.decimal_string(lease["storage_per_hour"]),
        rate=money.decimal_string(rate(lease)),
        cost=money.decimal_string(cost_so_far(lease, now)),
        currency=CURRENCY,
        last_seen=iso(lease["last_seen"]),
        contract_ends=iso(lease["end_ms"]),
        gpu_util=lease["gpu_util"],
        destroy_requested=iso(destroy["created_at"]) if destroy else None,
    )


def hold_view(job: Row) -> HoldView | None:
    if job["hold_reason"] is None:
        return None
    row = HOLDS[HoldReason(job["hold_reason"])]
    return HoldView(
        reason=job["hold_reason"],
        meaning=row.meaning,
        detail=job["hold_detail"] or "",
        since=iso(job["hold_since"]) or "",
        by=job["hold_by"] or "daemon",
        advice=row.advice,
        commands=[command.format(job=job["id"]) for command in row.commands],
    )


# What goes on in a state when nothing more specific is known. SFT, DPO and GGUF say it themselves.
_BY_STATE = {
    JobState.PROVISIONED: Activity.STARTING,
    JobState.DOWNLOADED: Activity.VERIFYING,
    JobState.VERIFIED: Activity.RETURNING,
}


def activity(rows: JobRows) -> Activity | None:
    """The most urgent thing in flight: an open create or destroy, then the machine, then the state's own work."""
    job, lease = rows.job, current_lease(rows.leases)
    for op in rows.operations:
        if op["kind"] == "create":
            return Activity.UNANSWERED if op["state"] == "UNKNOWN" else Activity.RENTING
    if any(open_destroy(row, rows.operations) for row in rows.leases):
        return Activity.DESTROYING
    state = JobState(job["state"])
    if state in TERMINAL:
        return None
    rented = lease is not None and is_billing(lease)
    if lease is not None and rented and lease["status"] in ("exited", "stopped"):
        return Activity.STOPPED
    if rented and rows.report and rows.report["lost_since"] is not None:
        return Activity.OUT_OF_CONTACT
    if job["hold_reason"] is not None:
        return None
    if state is JobState.QUEUED:
        if lease is None or not rented:
            return Activity.SEARCHING
        return Activity.SETTING_UP if lease["status"] == "running" else Activity.BOOTING
    if state is JobState.GGUF and job["manifest_sha256"]:
        return Activity.DOWNLOADING
    return _BY_STATE.get(state)


def progress(rows: JobRows, status: Mapping[str, Any]) -> Progress | None:
    """Bytes while the model comes home, steps while a stage trains; None where nothing can be counted."""
    state = rows.job["state"]
    if state == "GGUF" and rows.job["manifest_sha256"]:
        done, total = bytes_here(rows)
        return Progress(stage=state, done=done, total=total, unit="BYTES")
    if state not in ("SFT", "DPO"):
        return None
    steps = json.loads(rows.job["prepared_json"] or "{}").get("steps", {})
    last = rows.metrics[-1] if rows.metrics else None
    total = (last["total"] if last else None) or steps.get(state) or 0
    step = last["step"] if last else 0
    if status.get("stage") == state:
        step, total = max(step, status.get("step", 0)), total or status.get("total_steps", 0)
    return Progress(stage=state, done=step, total=total, unit="STEPS") if total else None


def bytes_here(rows: JobRows) -> tuple[int, int]:
    """(bytes on this disk, bytes of the manifest). A set bit of `durable` is one chunk; the last may be shorter."""
    manifest = json.loads(rows.job["manifest_json"] or "{}")
    total = sum(file["size"] for file in manifest.get("files", ()))
    done = 0
    for row in rows.downloads:
        bits = int.from_bytes(row["durable"], "little").bit_count()
        done += row["size"] if row["complete"] else min(row["size"], bits * row["chunk_size"])
    return done, max(total, sum(row["size"] for row in rows.downloads))


def eta_s(metrics: Sequence[Row]) -> int | None:
    """Seconds to the end of the stage at the pace of its last steps; None before two steps are known."""
    if len(metrics) < 2 or not metrics[-1]["total"]:
        return None
    first, last = metrics[0], metrics[-1]
    steps, elapsed = last["step"] - first["step"], last["at"] - first["at"]
    return round((last["total"] - last["step"]) * elapsed / steps / 1000) if steps > 0 else None


def model_safety(rows: JobRows) -> Safety:
    """Is the model safe here? Yes only by a receipt of the current artifact set whose files are still there."""
    job, receipt = rows.job, rows.receipt
    if receipt is not None:
        return _by_receipt(receipt)
    lease = current_lease(rows.leases)
    instance = lease["instance_id"] if lease is not None and is_billing(lease) else None
    if job["manifest_sha256"] is None:
        return _before_the_model(rows, instance)
    done, total = bytes_here(rows)
    here = "every file is here and hashes right, but is not verified yet"
    if job["state"] not in ("DOWNLOADED", "VERIFIED"):
        here = f"{_gigabytes(done)} of {_gigabytes(total)} is here"
    if instance is None:
        return Safety(where=Whereabouts.NOWHERE, safe=False, text=f"no. {here}; no machine holds the rest", path=None)
    text = f"no. {here}; the whole model is on instance {instance} only, which is kept"
    return Safety(where=Whereabouts.BOX, safe=False, text=text, path=None)


def _by_receipt(receipt: Row) -> Safety:
    folder = Path(receipt["folder"])
    for file in json.loads(receipt["files"]):
        path = folder / file["path"]
        if not path.is_file() or path.stat().st_size != file["size"]:
            text = f"NO LONGER. It was verified, but {path} is missing or was changed since"
            return Safety(where=Whereabouts.NOWHERE, safe=False, text=text, path=str(folder))
    how = "levels L0-L5 passed" if receipt["level"] == "full" else "bytes only: its behaviour was not checked"
    text = f"yes. Verified {iso(receipt['created_at'])} ({how}): {folder}"
    return Safety(where=Whereabouts.HERE, safe=True, text=text, path=str(folder))


def _before_the_model(rows: JobRows, instance: int | None) -> Safety:
    step = _status(rows.report).get("checkpoint_step") or 0
    if JobState(rows.job["state"]) in TERMINAL:
        text, where = "no. The job ended without a model", Whereabouts.NOWHERE
    elif step and instance is not None:
        text = f"no. The final model exists nowhere yet; checkpoint {step} is on instance {instance}"
        where = Whereabouts.BOX
    else:
        text, where = "no. The model exists nowhere yet", Whereabouts.NOWHERE
    return Safety(where=where, safe=False, text=text, path=None)


def loss_deadline(lease: Row, credit: int | None, burn: int, now: int) -> LossDeadline | None:
    """When the machine and what is on it is lost by itself: its contract ends, or the account's credit does."""
    if not is_billing(lease):
        return None
    ends = [] if lease["end_ms"] is None else [(lease["end_ms"], "CONTRACT_ENDS")]
    if credit is not None and burn > 0:
        ends.append((now + credit * money.HOUR_MS // burn, "CREDIT_ENDS"))
    if not ends:
        return None
    at, cause = min(ends)
    return LossDeadline(at=iso(at) or "", cause=cause)


def model_name(spec: Mapping[str, Any]) -> str:
    model = spec.get("model", "")
    return str(model.get("name", "")) if isinstance(model, Mapping) else str(model)


def reached(state: str, wanted: str) -> bool:
    """Whether `state` is `wanted` or lies behind it on the main line."""
    if state == wanted:
        return True
    line = [str(s) for s in MAIN_LINE]
    return state in line and wanted in line and line.index(state) >= line.index(wanted)


def _status(report: Row | None) -> Mapping[str, Any]:
    """The box's last status.json; the daemon checked it before it stored it."""
    status: Mapping[str, Any] = json.loads(report["status_json"]) if report and report["status_json"] else {}
    return status


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
