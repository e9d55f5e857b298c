"""Compare the market's list with ours: at start, on wake, and every half minute while anything may bill.

Only a trusted listing is evidence; an untrusted one changes nothing. From a trusted one: leases learn their status,
unknown operations are resolved, late arrivals are recognised by their labels, a destroy is confirmed by absence from
two listings and the market's own null, and what nobody knows is reported as an orphan, never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from daemon.clock import DaemonClock
from daemon.control import accounts
from daemon.control.operate import Operator, adopt, is_anothers, presume_work, settle
from daemon.control.permits import ArtifactLost, NoPermit
from daemon.domain import ids
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.market import HALTED, UNREACHABLE, Instance, Listing
from daemon.domain.records import Job, Kind, Lease, LeaseState, Operation, OpState
from daemon.errors import CredentialsRefused, LostRace, MarketError, MarketUnreachable
from daemon.settings import Timing
from daemon.store import events, jobs, leader, leases, operations
from daemon.store.database import Database

log = structlog.get_logger()
ABSENT_LISTINGS = 2  # that confirm an instance is gone
DAY_MS = 86_400_000
UNTOLD_S = 3600.0  # awake, without a word of what was charged, until a job is held for it


@dataclass
class Reconciler:
    """One pass at a time; the supervisor owns the schedule."""

    database: Database
    operator: Operator
    clock: DaemonClock
    timing: Timing
    _last_pass: float | None = None  # monotonic: counts awake time alone
    _missed: dict[int, float] = field(default_factory=dict)  # lease -> boot time of the first look without it
    _reported: str = ""

    async def run_once(self) -> Listing:
        """One pass. Never raises for what the market does; raises Fenced when another daemon leads."""
        listing = await self.operator.market.listing()
        if listing.trusted and listing.market_ms is not None:
            self.clock.not_ahead_of(listing.market_ms)
        now = self.clock.wall_ms()
        listing = self._of_our_account(listing)
        with self.database.write() as c:
            leader.renew(c, now)
            if not listing.trusted:
                leader.put_meta(c, "last_probe_error", listing.problem)
                since = int(leader.get_meta(c, "unlisted_since") or now)  # while this computer slept, nobody asked
                leader.put_meta(c, "unlisted_since", str(min(max(since, self.clock.awake_since_ms()), now)))
                if listing.problem != self._reported:
                    events.add(c, "market.untrusted", now, problem=listing.problem)
        self.operator.note()
        if not listing.trusted:
            if listing.problem != self._reported:
                log.warning("market.untrusted", problem=listing.problem)
            self._reported = listing.problem
            self._last_pass = None  # absence is counted between two passes that ran
            return listing
        self._reported = ""
        self._apply(listing, now)
        for lease in self._absent_long_enough():
            await self._confirm_gone(lease)
        for operation in self._create_absent_long_enough():
            await self._confirm_absent(operation)
        await self._end_late_arrivals()
        self._last_pass = self.clock.mono()
        return listing

    def _of_our_account(self, listing: Listing) -> Listing:
        """Untrusted where it is of another account than what may be rented: there all of that looks gone."""
        if not listing.trusted:
            return listing
        try:
            accounts.refuse_another(self.database, listing.account)
        except CredentialsRefused as refused:
            return Listing(trusted=False, problem=refused.message)
        return listing

    def _apply(self, listing: Listing, now: int) -> None:
        """Everything that the listing alone decides, in one transaction."""
        awake = self.clock.mono() - self._last_pass if self._last_pass is not None else 0.0
        missed_since = self._missed
        self._last_pass, self._missed = None, {}  # a pass that fails may be stored or not: nothing is counted across it
        with self.database.write() as c:
            leader.put_meta(c, "last_listing", str(now))
            leader.put_meta(c, "last_probe_error", "")
            leader.put_meta(c, "unlisted_since", "")
            if listing.credit is not None:
                leader.put_meta(c, "credit", str(listing.credit))
            install = leader.get_meta(c, "install_id")
            creates = operations.creates_by_label(c)
            for instance in listing.instances:
                lease = leases.by_instance(c, instance.id)
                if lease is None and ids.label_install(instance.label) == install:
                    lease = _recognise(c, instance, creates.get(instance.label or ""), now, self.database.epoch)
                if lease is not None:
                    if not lease.is_held:
                        _reopen(c, lease, now)
                    leases.observe(c, lease, instance, now)
            present = {instance.id for instance in listing.instances}
            missed = [lease for lease in leases.held(c) if lease.instance_id not in present]
            for lease in missed:
                leases.miss(c, lease, now)
            for lease in leases.recheck_due(c, now):
                leases.change(c, lease.id, recheck_at=None)  # a day later it is still gone
            settle(c, self._forsaken(c), now, "it was cut short")
            for op in operations.open_ones(c):
                if op.state is OpState.UNKNOWN:
                    _resolve(c, op, listing, now, awake, self.timing.destroy_resend)
                    if op.kind is Kind.START and _is_queued(listing.by_id(op.instance_id or 0)):
                        self._stop_due(c, op, now)
        self._missed = {lease.id: missed_since.get(lease.id, self.clock.boot()) for lease in missed}

    def _stop_due(self, c: Connection, start: Operation, now: int) -> None:
        """Nobody heard that this start only queued. The stop of it is stored as one that did not leave: plan asks."""
        request = {"instance": start.instance_id, "why": "the start was only queued"}
        of = {"job_id": start.job_id, "lease_id": start.lease_id, "instance_id": start.instance_id}
        stop = operations.intend(c, Kind.STOP, now, self.database.epoch, request, **of)
        operations.set_state(c, stop, OpState.ABSENT, now, error="not sent yet")

    def _forsaken(self, c: Connection) -> list[Operation]:
        """Requests to the market that a command, an error or a full disk cut short. Stage starts are sent again."""
        return [
            op
            for op in operations.open_ones(c)
            if op.kind is not Kind.STAGE_START and op.id not in self.operator.in_flight
        ]

    def _absent_long_enough(self) -> list[Lease]:
        """By the boot clock, and by looks of this process: the wall clock may be set between two of them."""
        boot = self.clock.boot()
        with self.database.read() as c:
            return [
                lease
                for lease in leases.held(c)
                if lease.absent_count >= ABSENT_LISTINGS
                and boot - self._missed.get(lease.id, boot) >= self.timing.gone_span
            ]

    async def _confirm_gone(self, lease: Lease) -> None:
        """The third witness: show-one. Any doubt leaves the lease as it is until the next pass."""
        try:
            seen = await self.operator.market.show(lease.instance_id)
        except (MarketError, CredentialsRefused) as error:
            log.info("gone.unconfirmed", instance=lease.instance_id, error=str(error))
            return
        if seen is not None:
            with self.database.write() as c:  # no listing tells what it costs: counted at the dearest that was shown
                leases.price_at_least(c, lease, seen.price_per_hour)
            return
        now = self.clock.wall_ms()
        with self.database.write() as c:
            asked = [op for op in operations.of_lease(c, lease.id) if op.kind is Kind.DESTROY]
            for op in asked:
                if op.state is OpState.UNKNOWN:
                    operations.set_state(c, op.id, OpState.DONE, now)
            accepted = any(op.state.may_have_happened for op in asked)
            leases.set_state(c, lease, LeaseState.GONE, now, why="destroyed" if accepted else "vanished")
            leases.change(c, lease.id, recheck_at=now + round(self.timing.gone_recheck * 1000))

    def _create_absent_long_enough(self) -> list[Operation]:
        with self.database.read() as c:
            return [
                op
                for op in operations.open_ones(c)
                if op.kind is Kind.CREATE
                and op.state is OpState.UNKNOWN
                and op.absent_count >= self.timing.create_absent_listings
                and op.absent_awake_s >= self.timing.create_absent_span
            ]

    async def _confirm_absent(self, op: Operation) -> None:
        """No charge may carry the label either; only then was nothing rented. A charge names the machine instead."""
        try:
            charges = await self.operator.market.charges(op.created_at - DAY_MS)
        except (MarketError, CredentialsRefused) as error:
            log.info("create.unconfirmed", label=op.label, error=str(error))
            if isinstance(error, CredentialsRefused) or op.absent_awake_s > UNTOLD_S:
                self._hold_unconfirmed(op, error)
            return
        now = self.clock.wall_ms()
        charged = [charge for charge in charges if charge.label == op.label]
        with self.database.read() as c:
            wrong = [each.instance_id for each in charged if is_anothers(c, op.id, each.instance_id or 0)]
        if wrong:
            self._hold_unconfirmed(op, MarketUnreachable(f"its charge names instance {wrong[0]}, which is another's"))
            return
        with self.database.write() as c:
            if not charged:
                operations.set_state(c, op.id, OpState.ABSENT, now, error="never listed, never charged")
            _is_answered(c, op, now, self.database.epoch)
            for instance in {charge.instance_id for charge in charged if charge.instance_id is not None}:
                log.warning("create.charged_but_unlisted", label=op.label, instance=instance)
                amount = sum(charge.amount for charge in charged if charge.instance_id == instance)
                self._take_charged(c, op, instance, amount, now)

    def _hold_unconfirmed(self, create: Operation, error: MarketError | CredentialsRefused) -> None:
        """Its job waits until charges can be read, and its person has to know: they may have to let our key."""
        now = self.clock.wall_ms()
        detail = f"no machine with the label {create.label} is listed, but whether one was charged is not told: {error}"
        with self.database.write() as c:
            job = jobs.get(c, create.job_id or "")
            if job.hold_reason is None:
                jobs.hold(c, job, HoldReason.UNANSWERED, detail, now, self.database.epoch)

    def _take_charged(self, c: Connection, create: Operation, instance: int, amount: int, now: int) -> None:
        """It was rented, and is in no listing. Its id is known now, so it is ended like any other late arrival.

        To wait for it would let it bill out of sight: what no listing ever showed, listings cannot show to be gone.
        """
        lease = adopt(c, create.id, instance, LeaseState.LOST, now)
        leases.change(c, lease.id, cost=max(amount, lease.time_cost_at(now)), observed_ms=now)
        if _is_forgotten(c, jobs.get(c, create.job_id or ""), create):
            presume_work(c, lease, now, self.database.epoch)
        events.add(c, "lease.charged", now, job=create.job_id, lease=lease.id, instance=instance)

    async def _end_late_arrivals(self) -> None:
        """A machine that came after its job had another, or had ended: stopped in this pass, destroyed if permitted."""
        with self.database.read() as c:
            late = [
                (lease, operations.of_lease(c, lease.id), jobs.get(c, lease.job_id))
                for lease in leases.held(c)
                if lease.state is LeaseState.LOST and lease.job_id is not None
            ]
        for lease, history, job in late:
            unused = not any(op.may_have_begun_work for op in history)
            now = self.clock.wall_ms()
            recent = [op for op in history if now - op.created_at < self.timing.destroy_resend * 1000]
            may_run = lease.status not in (*HALTED, *UNREACHABLE)
            if may_run and not any(op.kind is Kind.STOP for op in recent):
                await self._try("stop", lease)
            # It came back from its destroy: the receipt still permits it. One that only its label makes the job's may
            # train for a copy of this database: stopped, kept, and told of.
            ours = lease.operation_id is not None or any(op.kind is Kind.DESTROY for op in history)
            by_receipt = job.state is JobState.DESTROYED and ours
            if (unused or by_receipt) and not any(op.kind is Kind.DESTROY for op in recent):
                await self._try("destroy", lease)

    async def _try(self, what: str, lease: Lease) -> None:
        try:
            if what == "stop":
                await self.operator.stop(lease, "a LOST machine reappeared or arrived late")
            else:
                with self.database.read() as c:
                    job = jobs.get(c, lease.job_id or "")
                await self.operator.destroy(job, lease, "arrived late or came back, and nothing on it is needed")
        except (MarketError, CredentialsRefused, NoPermit, ArtifactLost, LostRace) as error:
            log.info(f"late.{what}_refused", instance=lease.instance_id, error=str(error))


def _is_answered(c: Connection, create: Operation, now: int, epoch: int | None) -> None:
    """What its job was held for is known: it goes on, or ends as its person wished."""
    job = jobs.get(c, create.job_id or "")
    if job.hold_reason is HoldReason.UNANSWERED:
        jobs.release(c, job, now, epoch, by="daemon")


def _recognise(c: Connection, instance: Instance, create: Operation | None, now: int, epoch: int | None) -> Lease:
    """An instance with our install's label that no lease knows: adopted, late, or an orphan."""
    named = create.job_id if create is not None else ids.label_job(instance.label)
    label, since = instance.label or "", min(now, instance.start_ms or now)  # it has cost what no row of ours counts
    if named is None or named not in jobs.ids(c):
        orphan = leases.add(c, None, instance.id, label, LeaseState.LIVE, now, since=since)
        events.add(c, "lease.orphan", now, lease=orphan, instance=instance.id, label=instance.label)
        return leases.get(c, orphan)
    job = jobs.get(c, named)
    state = _place(c, job, create)
    wanted = state is LeaseState.LIVE
    if create is not None:
        lease = adopt(c, create.id, instance.id, state, now)
        _is_answered(c, create, now, epoch)
    else:
        lease = leases.get(c, leases.add(c, None, instance.id, label, state, now, job=job.id, since=since))
        if wanted and job.hold_reason is None:
            why = f"instance {instance.id} is this job's, but this database does not know what was done on it"
            jobs.hold(c, job, HoldReason.RESTORED, why, now, epoch)
    if create is None or _is_forgotten(c, job, create):
        presume_work(c, lease, now, epoch)
    events.add(c, "lease.adopted" if wanted else "lease.late", now, job=job.id, lease=lease.id, instance=instance.id)
    return lease


def _is_forgotten(c: Connection, job: Job, create: Operation) -> bool:
    """What was done on its machine may be in no row, whether or not the person has resumed since."""
    return job.hold_reason is HoldReason.RESTORED or events.restored_since(c, create.id)


def _place(c: Connection, job: Job, create: Operation | None) -> LeaseState:
    """What a machine becomes to the job whose label it has: LIVE if the job has no other, and none that may come."""
    others = [op for op in operations.open_ones(c, job.id) if op.kind is Kind.CREATE]
    taken = leases.live(c, job.id) is not None or any(create is None or op.id != create.id for op in others)
    return LeaseState.LOST if taken or job.state.is_terminal else LeaseState.LIVE


def _reopen(c: Connection, lease: Lease, now: int) -> None:
    """It was confirmed gone, or written off, and is listed again."""
    if lease.state is LeaseState.WRITTEN_OFF:
        return  # watched for ever, shown by the command line; the person said it is theirs to deal with
    state = LeaseState.LIVE if lease.job_id is None else _place(c, jobs.get(c, lease.job_id), None)
    leases.set_state(c, lease, state, now, why="reappeared")
    events.add(c, "lease.reappeared", now, job=lease.job_id, lease=lease.id, instance=lease.instance_id)


def _resolve(c: Connection, op: Operation, listing: Listing, now: int, awake: float, patience_s: float) -> None:
    """One UNKNOWN operation against a trusted listing. Stage starts are resolved by the box, not here."""
    if op.kind is Kind.CREATE:
        since_sent_s = max(0, now - (op.sent_at or now)) / 1000
        operations.count_absence(c, op, min(awake, since_sent_s))  # listed, _recognise would have made it DONE
        return
    instance = listing.by_id(op.instance_id or 0)
    if op.kind is Kind.DESTROY:
        if instance is not None and now - (op.sent_at or now) > patience_s * 1000:  # it went nowhere: plan asks again
            operations.set_state(c, op.id, OpState.ABSENT, now, error="still listed")
        elif instance is None and op.lease_id is not None and not leases.get(c, op.lease_id).is_held:
            operations.set_state(c, op.id, OpState.DONE, now)  # written off, or confirmed while the answer was out
    elif op.kind in (Kind.START, Kind.STOP):
        want = "running" if op.kind is Kind.START else "stopped"
        happened = instance is not None and instance.intended_status == want
        operations.set_state(c, op.id, OpState.DONE if happened else OpState.ABSENT, now)


def _is_queued(instance: Instance | None) -> bool:
    """It is meant to run and has no GPU: it will run, and bill, whenever one frees."""
    return instance is not None and instance.intended_status == "running" and instance.cur_state == "stopped"
