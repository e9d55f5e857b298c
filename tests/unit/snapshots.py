"""What `plan` sees of one job, with a default for everything that a test does not say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from daemon.domain.lifecycle import JobState
from daemon.domain.market import HALTED
from daemon.domain.records import (
    BoxReport,
    Job,
    Kind,
    Lease,
    LeaseState,
    Operation,
    OpState,
    ReceiptRow,
    StageRun,
    Token,
)
from daemon.domain.snapshot import Rules, Snapshot

NOW = 1_790_000_000_000
S = 1000
RULES = Rules(
    cost_limit=10_000_000, time_limit_s=36_000, hold_limit=2_000_000, reserve=1_000_000, rescue_s=600,
    ask_before_destroy=False,
    boot_patience_s=1200, ssh_patience_s=600, offline_patience_s=1800, start_patience_s=600, destroy_resend_s=60,
    offer_retry_s=60, offer_patience_s=3600,
)  # fmt: skip


def job(state: JobState = JobState.QUEUED, **values: Any) -> Job:
    row = Job(
        id="abc123", name="n", state=state, version=1, attempt=1, spec_text="", spec_json="{}", spec_sha256="",
        spec_dir="/", model_revision=None, hold_reason=None, hold_detail=None, hold_since=None, hold_by=None, wish=None,
        wish_by=None,
        manifest_sha256=None, manifest_json=None, data_json=None, prepared_json=None, created_at=NOW - 3600 * S,
        state_since=NOW - 600 * S, spoken_at=NOW - 3600 * S, model_dir=None,
    )  # fmt: skip
    return replace(row, **values)


def lease(**values: Any) -> Lease:
    row = Lease(
        id=1, job_id="abc123", operation_id=1, instance_id=77, label="l", state=LeaseState.LIVE, machine_id=5,
        host_id=6, gpu_name="H100 SXM", num_gpus=1, price_per_hour=2_000_000, storage_per_hour=20_000, up_per_gb=0,
        down_per_gb=0,
        status="running", intended="running", status_msg="", direct="h:1", proxy=None, challenge="c", host_key="k",
        provisioned=1, python="/p", root="/r", start_ms=NOW - 900 * S, end_ms=None, observed_ms=NOW, running_ms=0,
        idle_ms=0, bytes_up=0, bytes_down=0, cost=0, created_at=NOW - 900 * S, last_seen=NOW, absent_first=None,
        absent_count=0, gone_at=None, recheck_at=None, status_since=NOW - 60 * S,
    )  # fmt: skip
    return replace(row, **values)


def op(kind: Kind, state: OpState = OpState.DONE, *, age_s: float = 120, **values: Any) -> Operation:
    at = NOW - round(age_s * S)
    row = Operation(
        id=9, kind=kind, state=state, job_id="abc123", lease_id=1, instance_id=77, label=None, nonce="n1", stage="SFT",
        permit=None, permit_ref=None, request="{}", reply=None, error=None, created_at=at, sent_at=at, resolved_at=at,
        absent_count=0, absent_awake_s=0.0,
    )  # fmt: skip
    return replace(row, **values)


def runs(done: int = 0) -> tuple[StageRun, ...]:
    names = ("SFT", "DPO", "GGUF")
    return tuple(
        StageRun("abc123", 1, name, f"n{i + 1}", 0, NOW, NOW if i < done else None, "{}" if i < done else None)
        for i, name in enumerate(names)
    )


def report(alive: int, age_s: float = 1) -> BoxReport:
    return BoxReport("abc123", 1, None, alive, NOW - round(age_s * S), None, 0, 0)


def starts(count: int) -> tuple[Operation, ...]:
    """Of one stage, one after the other, each answered."""
    return tuple(op(Kind.STAGE_START, age_s=120 + n) for n in range(count, 0, -1))


STARTED = op(Kind.STAGE_START)
REFUSED = op(Kind.DESTROY, OpState.REFUSED, age_s=5)
RECEIPT = ReceiptRow(1, "abc123", 1, "m", "/f", "[]", "[]", "full", NOW)
TOKEN = Token(1, "abc123", 77, 1, "me", NOW, NOW + 1000, None, None)


def snap(row: Job | None = None, live: Lease | None = None, *others: Lease, **values: Any) -> Snapshot:
    row = row or job()
    known = ((live,) if live else ()) + others
    values = {"silent_since_ms": values.get("link_down_since_ms")} | values
    return Snapshot(now_ms=NOW, job=row, rules=values.pop("rules", RULES), lease=live, leases=known, **values)


def training(**values: Any) -> Snapshot:
    """In SFT, on a provisioned machine whose runner is alive, and was looked at just now.

    One that is halted does not answer. `late` is another machine of the job.
    """
    live, late = values.pop("live", lease()), values.pop("late", None)
    given: dict[str, Any] = {"operations": (STARTED,), "stages": runs(), "report": report(1), "looked_ms": NOW}
    given |= {"link_down_since_ms": NOW if live.status in HALTED else None} | values
    return snap(given.pop("row", job(JobState.SFT)), live, *([late] if late else []), **given)
