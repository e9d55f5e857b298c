"""Everything that `plan` may look at: one job's rows, the rules it runs under, and what this process alone knows."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.domain.lifecycle import JobState
from daemon.domain.records import (
    BoxReport,
    Job,
    Kind,
    Lease,
    Operation,
    OpState,
    ReceiptRow,
    StageRun,
    Token,
)


@dataclass(frozen=True)
class Rules:
    """What the spec and the settings fix for this job. Money in micro-dollars, time in seconds."""

    cost_limit: int | None
    time_limit_s: float | None
    hold_limit: int
    reserve: int  # download, verification and bandwidth after training
    rescue_s: float  # what download and verification take
    ask_before_destroy: bool
    boot_patience_s: float
    ssh_patience_s: float
    offline_patience_s: float
    start_patience_s: float
    destroy_resend_s: float
    offer_retry_s: float
    offer_patience_s: float

    def is_spent(self, cost: int, *, training: bool) -> bool:
        """Training may not touch the reserve, which is for the way home; nothing may spend more than the limit."""
        return self.cost_limit is not None and cost >= self.cost_limit - (self.reserve if training else 0)


@dataclass(frozen=True)
class Snapshot:
    """Everything that is known about one job at one moment."""

    now_ms: int
    job: Job
    rules: Rules
    lease: Lease | None  # the LIVE one
    leases: tuple[Lease, ...] = ()
    operations: tuple[Operation, ...] = ()  # all of the job, oldest first
    stages: tuple[StageRun, ...] = ()
    receipt: ReceiptRow | None = None
    loss_ms: int | None = None  # the contract ends, or the credit does at this rate
    token: Token | None = None  # usable, for the lease in question
    report: BoxReport | None = None
    stage_failure: str | None = None  # the box's failed.json of the current stage, in words
    downloaded: bool = False  # every file of the manifest is complete here
    rescued: bool = False  # what was worth saving since the hold began is here
    asked_market_ms: int | None = None  # last search that found nothing
    nothing_fits_since_ms: int | None = None  # the first such search since a machine was rented
    accepted: bool = False  # the person released an ASK_DESTROY hold
    link_down_since_ms: int | None = None
    looked_ms: int | None = None  # the box last said then that the current stage has not ended
    awake_since_ms: int = 0  # this daemon has been running, and this computer awake, since then
    saves_failed: int = 0  # since the job was last held
    silent_since_ms: int | None = None  # the box of its machine, while we were heard elsewhere

    def open(self, *kinds: Kind) -> Operation | None:
        return next((op for op in self.operations if op.kind in kinds and op.state.is_open), None)

    def work_started(self, lease: Lease) -> bool:
        """A stage was, or may have been, started on it: it is not `unused`."""
        return any(op.may_have_begun_work and op.lease_id == lease.id for op in self.operations)

    def may_go(self, lease: Lease) -> bool:
        """One of the three permits holds: no work, a receipt of the current artifact set, or the typed id."""
        typed = self.token is not None and self.token.instance_id == lease.instance_id
        return not self.work_started(lease) or self.receipt is not None or typed

    def destroys(self, lease: Lease) -> list[Operation]:
        return [
            op
            for op in self.operations
            if op.kind is Kind.DESTROY and op.lease_id == lease.id and op.state not in (OpState.ABSENT, OpState.REFUSED)
        ]

    @property
    def stage(self) -> StageRun | None:
        """The first stage of the attempt that is not done."""
        return next((run for run in self.stages if run.done_at is None), None)

    @property
    def is_training(self) -> bool:
        """Or on the way there: what ends here can begin again from a checkpoint. The state may be ahead, or behind."""
        return self.stage is not None and self.stage.stage != JobState.GGUF

    @property
    def cost(self) -> int:
        return sum(lease.cost_at(self.now_ms) for lease in self.leases)

    @property
    def held_leases(self) -> list[Lease]:
        return [lease for lease in self.leases if lease.is_held]

    @property
    def nothing_rented(self) -> bool:
        return not self.held_leases and self.open(Kind.CREATE, Kind.DESTROY) is None
