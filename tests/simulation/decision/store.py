"""The daemon's rows in memory, with the functions of daemon/store under their own names.

Rows are the frozen ones of daemon/domain/records.py, made writable: `plan` and `Lease.cost_at` are the real ones. A
transaction is one call: nothing here is cut in half. The triggers that guard money are kept, as `Rejected`.
"""

from __future__ import annotations

from typing import Any

from daemon.domain.billing import afterwards, between
from daemon.domain.holds import ANSWERS, HoldReason
from daemon.domain.lifecycle import TERMINAL, JobState
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
    Wish,
)
from daemon.errors import LostRace
from daemon.store.clock_step import LEAST_MS
from daemon.store.leases import SHOWS_MS
from tests.simulation.decision.market import Machine

TOKEN_LIFE_MS = 900_000
TIMES = {  # as daemon/store/clock_step.py, for the columns that the rows here have
    "leader": ("renewed",),
    "job": ("state_since", "hold_since", "spoken_at"),
    "leases": ("created_at", "observed_ms", "last_seen", "status_since", "absent_first", "gone_at"),
    "operations": ("created_at", "sent_at", "resolved_at"),
    "runs": ("started_at",),
    "report": ("seen_at", "lost_since"),
}
OPEN = tuple(state for state in OpState if state.is_open)


class Rejected(Exception):
    """A trigger of the database said no."""


class _Writable:
    """Both of them: with one alone Python sets every attribute by a call."""

    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


class JobRow(_Writable, Job):
    pass


class LeaseRow(_Writable, Lease):
    pass


class OperationRow(_Writable, Operation):
    pass


class StageRow(_Writable, StageRun):
    pass


class TokenRow(_Writable, Token):
    pass


class ReportRow(_Writable, BoxReport):
    pass


class Store:
    """One job's rows."""

    def __init__(self, job: str, stages: tuple[str, ...], now: int) -> None:
        self.leases: list[LeaseRow] = []
        self.renewed = now
        self.operations: list[OperationRow] = []
        self.opened: list[OperationRow] = []  # of them, those that are open
        self.runs: dict[int, list[StageRow]] = {}
        self.receipts: list[ReceiptRow] = []
        self.superseded: set[int] = set()
        self.tokens: list[TokenRow] = []
        self.report: ReportRow | None = None
        self.downloaded: str | None = None
        self.events = dict.fromkeys(("held", "moved", "saved", "accepted"), 0)  # the number of each one's newest
        self.credit: int | None = None
        self.lowered = 0  # of what was recorded, by the market's charges
        self.stages = stages
        self.job = JobRow(
            id=job, name=job, state=JobState.QUEUED, version=0, attempt=1, spec_text="", spec_json="", spec_sha256="",
            spec_dir="", model_revision=None, hold_reason=None, hold_detail=None, hold_since=None, hold_by=None,
            wish=None, wish_by=None, manifest_sha256=None, manifest_json=None, data_json=None, prepared_json=None,
            created_at=now, state_since=now, spoken_at=now, model_dir=None,
        )  # fmt: skip
        self.begin_attempt(1, keep=(), fresh=True)

    # -- the clock ------------------------------------------------------------------------------------------------

    def undo_step(self, now: int) -> None:
        """As daemon/store/clock_step.py: what lies after `now` comes back by as much as the newest of it."""
        step = self.newest() - now
        if step >= LEAST_MS:
            for row, name, at in self._times():
                if at > now:
                    setattr(row, name, at - step)

    def newest(self) -> int:
        return max(at for _, _, at in self._times())

    def _times(self) -> list[tuple[Any, str, int]]:
        rows: list[tuple[str, Any]] = [("leader", self), ("job", self.job)]
        rows += [("leases", lease) for lease in self.leases]
        rows += [("operations", op) for op in self.operations]
        rows += [("runs", run) for runs in self.runs.values() for run in runs]
        rows += [("report", self.report)] if self.report is not None else []
        return [(row, name, getattr(row, name) or 0) for kind, row in rows for name in TIMES[kind]]

    # -- jobs -----------------------------------------------------------------------------------------------------

    def change(self, version: int, **values: Any) -> None:
        """The compare-and-swap. Raises LostRace."""
        job = self.job
        if version != job.version:
            raise LostRace("the job changed")
        job.version = version + 1
        for name, value in values.items():
            setattr(job, name, value)

    def move(self, version: int, to: JobState, now: int, by: str = "daemon", **values: Any) -> None:
        if to in TERMINAL:
            if self.live is not None or any(lease.is_held for lease in self.leases):
                raise Rejected("terminal_with_machine")
            if self.open(Kind.CREATE, Kind.DESTROY):
                raise Rejected("terminal_with_machine")
            values["wish"] = None
        if to is JobState.VERIFIED and self.current_receipt() is None:
            raise Rejected("verified_without_receipt")
        self._end_hold(by)
        self.change(version, state=to, state_since=now, **values)
        self.note("moved")

    def hold(
        self, version: int, reason: HoldReason, detail: str, now: int, by: str = "daemon", since: int | None = None
    ) -> None:
        answered: dict[str, Any] = {"wish": None} if reason in ANSWERS else {}
        if not answered and self.job.hold_reason is HoldReason.CANCEL_WISH:
            answered = {"wish": Wish.CANCEL}
        since = now if since is None else since
        self.change(version, hold_reason=reason, hold_detail=detail, hold_since=since, hold_by=by, **answered)
        self.note("held")

    def release(self, version: int, now: int, by: str) -> None:
        self._end_hold(by)
        self.change(version, spoken_at=now)

    def wish(self, version: int, what: Wish, now: int, by: str) -> None:
        self._end_hold(by)
        self.change(version, wish=what, wish_by=by)

    def _end_hold(self, by: str) -> None:
        job = self.job
        if job.hold_reason is HoldReason.ASK_DESTROY and by != "daemon":
            self.note("accepted")
        job.hold_reason = job.hold_detail = job.hold_since = job.hold_by = None

    def note(self, event: str) -> None:
        self.events[event] = max(self.events.values()) + 1

    # -- stages and attempts --------------------------------------------------------------------------------------

    def begin_attempt(self, n: int, *, keep: tuple[StageRow, ...], fresh: bool) -> None:
        kept = {run.stage: run for run in keep}
        self.runs[n] = [
            StageRow(
                self.job.id, n, stage, run.nonce if run else f"n{n}.{stage}", 0 if run else int(fresh),
                run.started_at if run else None, run.done_at if run else None, run.done_json if run else None,
            )
            for stage in self.stages
            for run in (kept.get(stage),)
        ]  # fmt: skip

    def of_attempt(self) -> list[StageRow]:
        return self.runs[self.job.attempt]

    def begin_again(self, *, keep: tuple[StageRow, ...], fresh: bool) -> dict[str, Any]:
        self.supersede()
        self.void_tokens(0)
        self.downloaded = None
        self.begin_attempt(self.job.attempt + 1, keep=keep, fresh=fresh)
        return {"attempt": self.job.attempt + 1, "manifest_sha256": None, "manifest_json": None}

    # -- receipts and tokens --------------------------------------------------------------------------------------

    def add_receipt(self, now: int) -> None:
        job = self.job
        row = ReceiptRow(
            len(self.receipts) + 1, job.id, job.attempt, job.manifest_sha256 or "", "", "", "", "full", now
        )
        self.receipts.append(row)

    def current_receipt(self) -> ReceiptRow | None:
        job = self.job
        for row in reversed(self.receipts):
            if (
                row.attempt == job.attempt
                and row.manifest_sha256 == job.manifest_sha256
                and row.id not in self.superseded
            ):
                return row
        return None

    def supersede(self) -> None:
        self.superseded.update(row.id for row in self.receipts)

    def add_token(self, instance: int, by: str, now: int) -> None:
        self.tokens.append(
            TokenRow(
                len(self.tokens) + 1, self.job.id, instance, self.job.attempt, by, now, now + TOKEN_LIFE_MS, None, None
            )
        )

    def usable_token(self, instance: int, now: int) -> TokenRow | None:
        for token in reversed(self.tokens):
            meant = token.instance_id == instance and token.attempt == self.job.attempt
            if (
                meant
                and token.void_at is None
                and token.used_by is None
                and token.created_at <= now <= token.expires_at
            ):
                return token
        return None

    def void_tokens(self, now: int) -> None:
        for token in self.tokens:
            if token.void_at is None:
                token.void_at = now

    # -- operations -----------------------------------------------------------------------------------------------

    def intend(self, kind: Kind, now: int, **values: Any) -> OperationRow:
        """INTENT. Raises Rejected as the triggers would."""
        row = OperationRow(
            id=len(self.operations) + 1, kind=kind, state=OpState.INTENT, job_id=self.job.id,
            lease_id=values.get("lease_id"), instance_id=values.get("instance_id"), label=values.get("label"),
            nonce=values.get("nonce"), stage=values.get("stage"), permit=values.get("permit"),
            permit_ref=values.get("permit_ref"), request="", reply=None, error=None, created_at=now, sent_at=None,
            resolved_at=None, absent_count=0, absent_awake_s=0.0,
        )  # fmt: skip
        if kind is Kind.CREATE and self.live is not None:
            raise Rejected("create_while_rented")
        if kind is Kind.DESTROY and not self._permits(row, now):
            raise Rejected("destroy_without_permit")
        if kind is Kind.STAGE_START and any(
            op.kind is Kind.DESTROY
            and op.lease_id == row.lease_id
            and op.state not in (OpState.ABSENT, OpState.REFUSED)
            for op in self.operations
        ):
            raise Rejected("stage_on_unused_destroy")
        self.operations.append(row)
        self.opened.append(row)
        return row

    def _permits(self, row: OperationRow, now: int) -> bool:
        if row.permit == "receipt":
            current = self.current_receipt()
            return current is not None and current.id == row.permit_ref
        if row.permit == "token":
            token = self.tokens[(row.permit_ref or 0) - 1]
            usable = token.void_at is None and token.used_by in (None, row.id) and row.created_at <= token.expires_at
            return usable and token.instance_id == row.instance_id and token.attempt == self.job.attempt
        return not any(
            op.kind is Kind.STAGE_START
            and op.lease_id == row.lease_id
            and op.state not in (OpState.ABSENT, OpState.REFUSED)
            for op in self.operations
        )

    def set_state(self, op: OperationRow, state: OpState, now: int) -> None:
        if state is OpState.SENT:
            if op.kind is Kind.DESTROY and not self._permits(op, now):
                raise Rejected("destroy_sent_without_permit")
            op.sent_at = now
        elif state not in OPEN:
            op.resolved_at = now
            if op in self.opened:
                self.opened.remove(op)
        op.state = state

    def open(self, *kinds: Kind) -> list[OperationRow]:
        return [op for op in self.opened if op.kind in kinds] if self.opened else []

    def of_lease(self, lease: Lease) -> list[OperationRow]:
        return [op for op in self.operations if op.lease_id == lease.id]

    def settle(self, forsaken: list[OperationRow], now: int) -> None:
        """An INTENT never left; a SENT one may have taken effect."""
        for op in forsaken:
            if op.state is OpState.INTENT:
                self.set_state(op, OpState.ABSENT, now)
            elif op.state is OpState.SENT:
                self.set_state(op, OpState.UNKNOWN, now)

    # -- leases ---------------------------------------------------------------------------------------------------

    @property
    def live(self) -> LeaseRow | None:
        live = LeaseState.LIVE
        for lease in self.leases:
            if lease.state is live:
                return lease
        return None

    def by_instance(self, instance: int) -> LeaseRow | None:
        for lease in reversed(self.leases):
            if lease.instance_id == instance:
                return lease
        return None

    def add_lease(
        self, op: OperationRow, instance: int, state: LeaseState, now: int, price: int, storage: int
    ) -> LeaseRow:
        if state is LeaseState.LIVE and self.live is not None:
            raise Rejected("one LIVE lease per job")
        row = LeaseRow(
            id=len(self.leases) + 1, job_id=self.job.id, operation_id=op.id, instance_id=instance, label=op.label or "",
            state=state, machine_id=instance, host_id=instance, gpu_name="H100", num_gpus=1, price_per_hour=price,
            storage_per_hour=0, up_per_gb=0, down_per_gb=0, status=None, intended=None, status_msg=None, direct=None,
            proxy=None, challenge="c", host_key=None, provisioned=None, python=None, root=None, start_ms=None,
            end_ms=None, observed_ms=None, running_ms=0, idle_ms=0, bytes_up=0, bytes_down=0, cost=0,
            created_at=op.sent_at or now, last_seen=None, absent_first=None, absent_count=0, gone_at=None,
            recheck_at=None, status_since=None,
        )  # fmt: skip
        self.leases.append(row)
        return row

    def set_lease_state(self, lease: LeaseRow, state: LeaseState, now: int) -> None:
        if state in (LeaseState.GONE, LeaseState.WRITTEN_OFF):
            started = self._started_since(lease, lease.observed_ms or lease.created_at)
            lease.cost += afterwards(lease, now, started=started) if lease.is_held else 0
            lease.gone_at = lease.observed_ms = now
        else:
            if state is LeaseState.LIVE and self.live not in (None, lease):
                raise Rejected("one LIVE lease per job")
            lease.gone_at = lease.recheck_at = lease.absent_first = None
            lease.absent_count = 0
        lease.state = state

    def recount(self, lease: LeaseRow, charged: int, now: int) -> None:
        if charged < lease.time_cost_at(now):
            self.lowered += lease.cost - charged
            lease.cost, lease.observed_ms = charged, now if lease.is_held else lease.observed_ms

    def _started_since(self, lease: LeaseRow, since: int) -> bool:
        return any(
            op.kind is Kind.START and op.state is not OpState.REFUSED and (op.sent_at or 0) >= since - SHOWS_MS
            for op in self.of_lease(lease)
        )

    def observe(self, lease: LeaseRow, seen: Machine, now: int, true_now: int, end_ms: int | None) -> None:
        """As daemon/store/leases.py; what the time since the last look cost is the real reckoning."""
        status = seen.status(true_now)
        started = status in HALTED and self._started_since(lease, lease.observed_ms or lease.created_at)
        span = between(lease, status, seen.price, seen.storage, now, started=started)
        if status != lease.status or seen.intended != lease.intended:
            lease.status_since = now
        lease.status, lease.intended, lease.status_msg = status, seen.intended, seen.status_msg
        lease.price_per_hour, lease.storage_per_hour = seen.price, seen.storage
        seen.listed_price = seen.price
        lease.end_ms = end_ms
        lease.running_ms += span.running_ms
        lease.idle_ms += span.idle_ms
        lease.cost += span.cost
        lease.observed_ms = lease.last_seen = now
        lease.absent_count, lease.absent_first = 0, None
