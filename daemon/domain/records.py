"""Our rows, frozen: what the store reads and `plan` looks at. Field names are column names (store/schema.py)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.money import accrued

GB = 1_000_000_000


class Wish(StrEnum):
    """What a person asked for that is not done yet."""

    CANCEL = "CANCEL"
    DISCARD = "DISCARD"
    ABANDON = "ABANDON"


class LeaseState(StrEnum):
    LIVE = "LIVE"
    LOST = "LOST"
    GONE = "GONE"
    WRITTEN_OFF = "WRITTEN_OFF"


class Kind(StrEnum):
    CREATE = "create"
    START = "start"
    STOP = "stop"
    DESTROY = "destroy"
    STAGE_START = "stage_start"


class OpState(StrEnum):
    """INTENT -> SENT -> DONE | REFUSED | UNKNOWN, UNKNOWN -> DONE | ABSENT; an INTENT that was never sent is ABSENT."""

    INTENT = "INTENT"
    SENT = "SENT"
    DONE = "DONE"
    REFUSED = "REFUSED"
    UNKNOWN = "UNKNOWN"
    ABSENT = "ABSENT"

    @property
    def is_open(self) -> bool:
        return self in _OPEN

    @property
    def may_have_happened(self) -> bool:
        return self in (OpState.SENT, OpState.UNKNOWN, OpState.DONE)


# Named once: a member looked up through its class costs a call, and these are asked for every row in every decision.
_HELD = (LeaseState.LIVE, LeaseState.LOST)
_OPEN = (OpState.INTENT, OpState.SENT, OpState.UNKNOWN)


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    state: JobState
    version: int
    attempt: int
    spec_text: str
    spec_json: str
    spec_sha256: str
    spec_dir: str
    model_revision: str | None
    hold_reason: HoldReason | None
    hold_detail: str | None
    hold_since: int | None
    hold_by: str | None
    wish: Wish | None
    wish_by: str | None
    manifest_sha256: str | None
    manifest_json: str | None
    data_json: str | None
    prepared_json: str | None
    created_at: int
    state_since: int
    spoken_at: int
    model_dir: str | None
    request_id: str = ""

    @property
    def is_ending(self) -> bool:
        """Every machine of it is to go: its model is proven here, or its person asked for the end."""
        return self.wish is not None or self.state is JobState.VERIFIED


@dataclass(frozen=True)
class Lease:
    id: int
    job_id: str | None
    operation_id: int | None
    instance_id: int
    label: str
    state: LeaseState
    machine_id: int | None
    host_id: int | None
    gpu_name: str
    num_gpus: int
    price_per_hour: int
    storage_per_hour: int
    up_per_gb: int
    down_per_gb: int
    status: str | None
    intended: str | None
    status_msg: str | None
    direct: str | None
    proxy: str | None
    challenge: str | None
    host_key: str | None
    provisioned: int | None
    python: str | None
    root: str | None
    start_ms: int | None
    end_ms: int | None
    observed_ms: int | None
    running_ms: int
    idle_ms: int
    bytes_up: int
    bytes_down: int
    cost: int
    created_at: int
    last_seen: int | None
    absent_first: int | None
    absent_count: int
    gone_at: int | None
    recheck_at: int | None
    status_since: int | None = None

    @property
    def is_held(self) -> bool:
        """Something at the market stands behind this lease, as far as we know."""
        return self.state in _HELD

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def rate(self) -> int:
        """Micro-dollars per hour it bills now, as far as the last listing says."""
        if not self.is_held or self.status == "offline":
            return 0
        halted = self.status in ("stopped", "exited") and self.intended != "running"
        return self.storage_per_hour if halted else self.price_per_hour

    def time_cost_at(self, now_ms: int) -> int:
        """Micro-dollars for its time until `now_ms`: what was counted up to the last look, and the rate since."""
        if not self.is_held:
            return self.cost
        return self.cost + accrued(self.rate, now_ms - (self.observed_ms or self.created_at))

    def cost_at(self, now_ms: int) -> int:
        """Micro-dollars for time and bytes until `now_ms`: never below what the market can have billed."""
        return (
            self.time_cost_at(now_ms)
            + -(-self.bytes_up * self.up_per_gb // GB)
            + -(-self.bytes_down * self.down_per_gb // GB)
        )


@dataclass(frozen=True)
class Operation:
    id: int
    kind: Kind
    state: OpState
    job_id: str | None
    lease_id: int | None
    instance_id: int | None
    label: str | None
    nonce: str | None
    stage: str | None
    permit: str | None
    permit_ref: int | None
    request: str
    reply: str | None
    error: str | None
    created_at: int
    sent_at: int | None
    resolved_at: int | None
    absent_count: int
    absent_awake_s: float

    @property
    def may_have_begun_work(self) -> bool:
        """A stage was, or may have been, started by it: its machine is not `unused`."""
        return self.kind is Kind.STAGE_START and self.state not in (OpState.ABSENT, OpState.REFUSED)


@dataclass(frozen=True)
class StageRun:
    """One stage of one attempt; `done_json` is the box's done.json, checked."""

    job_id: str
    attempt: int
    stage: str
    nonce: str
    fresh: int
    started_at: int | None
    done_at: int | None
    done_json: str | None


@dataclass(frozen=True)
class ReceiptRow:
    id: int
    job_id: str
    attempt: int
    manifest_sha256: str
    folder: str
    files: str
    levels: str
    level: str
    created_at: int


@dataclass(frozen=True)
class Token:
    id: int
    job_id: str
    instance_id: int
    attempt: int
    by: str
    created_at: int
    expires_at: int
    void_at: int | None
    used_by: int | None


@dataclass(frozen=True)
class BoxReport:
    """The last thing the box said: `lost_since` is set while it is out of contact."""

    job_id: str
    attempt: int
    status_json: str | None
    alive: int | None
    seen_at: int | None
    lost_since: int | None
    events_offset: int
    log_offset: int
