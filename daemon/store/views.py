"""A job's rows made into what is told about it (shapes.py), by pure functions.

What is in flight - renting, downloading, a destroy not yet confirmed - is derived here from operations, leases and
downloads: the state never says it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from daemon.domain import money
from daemon.domain.coverage import STAGES, Coverage, coverage
from daemon.domain.holds import HOLDS, HoldReason
from daemon.domain.lifecycle import TERMINAL, JobState
from daemon.store.job_rows import (
    JobRows,
    Row,
    box_status,
    bytes_here,
    bytes_per_s,
    cost_so_far,
    current_lease,
    is_billing,
    open_destroy,
    rate,
)
from daemon.store.safety import model_safety
from daemon.store.shapes import (
    CURRENCY,
    Activity,
    CoverageView,
    HoldView,
    JobView,
    LeaseView,
    LossDeadline,
    Progress,
    iso,
)


def job_view(rows: JobRows, now: int) -> JobView:
    """The whole answer about one job at wall time `now` (UTC milliseconds)."""
    job, status = rows.job, box_status(rows.report)
    lease = current_lease(rows.leases)
    last = rows.metrics[-1] if rows.metrics else None
    limit = rows.spec["limits"]["cost"]
    safety, counted = model_safety(rows), progress(rows, status)
    return JobView(
        id=job["id"],
        name=job["name"],
        state=job["state"],
        activity=activity(rows),
        hold=hold_view(job),
        wish=job["wish"],
        attempt=job["attempt"],
        model=rows.spec["model"],
        stages=[stage for stage in ("SFT", "DPO") if rows.spec[stage.lower()]] + ["GGUF"],
        created_at=iso(job["created_at"]) or "",
        state_since=iso(job["state_since"] or job["created_at"]) or "",
        finished_at=iso(job["finished_at"]),
        progress=counted,
        moving=moving(rows),
        loss=last["loss"] if last else None,
        lr=last["lr"] if last else None,
        tok_s=last["tok_s"] if last else None,
        coverage=coverage_views(rows),
        eta_s=ends_in_s(rows, status, counted),
        step_s=step_s(rows.metrics),
        expected_s=expected_s(rows.spec),
        gpu_busy=status.get("gpu_util"),
        gpu_memory=status.get("gpu_memory"),
        placement=status.get("placement"),
        checkpoint_step=status.get("checkpoint_step") or None,
        box_seen_at=iso(rows.report["seen_at"]) if rows.report else None,
        out_of_contact_since=iso(_out_of_contact_since(rows)),
        lease=lease_view(lease, rows.operations, now) if lease else None,
        cost=money.decimal_string(sum(cost_so_far(row, now) for row in rows.leases)),
        cost_limit=None if limit is None else money.decimal_string(limit),
        currency=CURRENCY,
        model_dir=job["model_dir"],
        verification=rows.spec["verify"]["level"].upper(),
        safety=safety,
        loss_deadline=None if safety["safe"] or lease is None else loss_deadline(lease, rows.credit, rows.burn, now),
    )


def coverage_views(rows: JobRows) -> list[CoverageView]:
    if not rows.job["prepared_json"]:
        return []
    sent = json.loads(rows.job["data_json"] or "{}")  # adapters lie there too, and have no rows
    read = {kind: sent[kind]["rows"] for kind in STAGES.values() if kind in sent}
    counted = coverage(read, json.loads(rows.job["prepared_json"]), rows.spec["batch_size"])
    return [coverage_view(stage) for stage in counted]


def coverage_view(counted: Coverage) -> CoverageView:
    return CoverageView(
        stage=counted.stage,
        read=counted.read,
        kept=counted.kept,
        trained=counted.trained,
        truncated=counted.truncated,
        steps=counted.steps,
        warning=counted.warning,
    )


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
    if rented and _out_of_contact_since(rows) is not None:
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


def _out_of_contact_since(rows: JobRows) -> int | None:
    """Contact that was lost with an earlier machine is nothing of this one."""
    lease, since = current_lease(rows.leases), rows.report["lost_since"] if rows.report else None
    return since if lease is not None and since is not None and since >= lease["created_at"] else None


def progress(rows: JobRows, status: Mapping[str, Any]) -> Progress | None:
    """Bytes while the model comes home, steps while a stage trains; None where nothing can be counted."""
    state = rows.job["state"]
    if state == "GGUF" and rows.job["manifest_sha256"]:
        done, total = bytes_here(rows)
        resent = sum(row["resent_bytes"] for row in rows.downloads)
        per_s = bytes_per_s(rows, done)
        return Progress(stage=state, done=done, total=total, unit="BYTES", per_s=per_s, resent=resent)
    if state not in ("SFT", "DPO"):
        return None
    steps = json.loads(rows.job["prepared_json"] or "{}").get("steps", {})
    last = rows.metrics[-1] if rows.metrics and rows.metrics[-1]["stage"] == state else None
    total = (last["total"] if last else None) or steps.get(state) or 0
    step = last["step"] if last else 0
    if status.get("stage") == state:
        step, total = max(step, status.get("step", 0)), total or status.get("total_steps", 0)
    return Progress(stage=state, done=step, total=total, unit="STEPS", per_s=None, resent=0) if total else None


def moving(rows: JobRows) -> Progress | None:
    """What goes up, or comes home beside the work."""
    if (now := rows.moving) is None:
        return None
    done, total, per_s, resent = (now[name] for name in ("done", "total", "per_s", "resent"))
    return Progress(stage=now["what"], done=done, total=total, unit="BYTES", per_s=per_s, resent=resent)


def ends_in_s(rows: JobRows, status: Mapping[str, Any], counted: Progress | None) -> int | None:
    """Seconds to the end of the stage or of the download that runs."""
    if counted is not None and counted["per_s"]:
        return round((counted["total"] - counted["done"]) / counted["per_s"])
    if rows.metrics and rows.metrics[-1]["stage"] == rows.job["state"]:
        return eta_s(rows.metrics, status)
    return None


def eta_s(metrics: Sequence[Row], status: Mapping[str, Any]) -> int | None:
    """Seconds to the end of the stage: as the box counts them from its tokens, else at the pace of the last steps."""
    last = metrics[-1]
    if status.get("stage") == last["stage"] and status.get("eta_s") is not None:
        return round(float(status["eta_s"]))
    pace = step_s(metrics)
    return round((last["total"] - last["step"]) * pace) if pace is not None and last["total"] else None


def step_s(metrics: Sequence[Row]) -> float | None:
    """Seconds a step took, on average over the last ones; None before two steps are known."""
    if len(metrics) < 2:
        return None
    first, last = metrics[0], metrics[-1]
    steps = last["step"] - first["step"]
    return (last["at"] - first["at"]) / steps / 1000 if steps > 0 else None


def expected_s(spec: Mapping[str, Any]) -> dict[str, float]:
    return {name: seconds for name, seconds in spec.get("expect", {}).items() if seconds is not None}


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
