"""Intent, send, record: how anything that costs money or deletes leaves this process.

INTENT is committed, then SENT, then one call is made outside any transaction; the reply is stored verbatim and only
then interpreted. A crash in between leaves an operation that `recover` finds: an INTENT was never sent; a SENT one may
have taken effect and is UNKNOWN until a trusted listing says. A create is never sent again.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import Connection

from daemon.box import challenge, onstart
from daemon.clock import Clock
from daemon.control import permits
from daemon.control.watch import away_limit_s
from daemon.domain import ids
from daemon.domain.market import CreateRequest, Offer
from daemon.domain.records import Job, Kind, Lease, LeaseState, Operation, OpState
from daemon.errors import CredentialsRefused, LostRace, MarketError, MarketUnreachable
from daemon.market.port import Market, Reply
from daemon.settings import Settings
from daemon.store import events, jobs, leader, leases, operations
from daemon.store.database import Database
from daemon.store.leader import get_meta

log = structlog.get_logger()


@dataclass
class Operator:
    """Performs market operations for the drivers and the reconcile loop."""

    database: Database
    market: Market
    clock: Clock
    settings: Settings
    acted: asyncio.Event = field(default_factory=asyncio.Event)  # something was sent: list soon
    in_flight: set[int] = field(default_factory=set)  # operations whose answer somebody here waits for

    async def rent(self, job: Job, offer: Offer, disk_gb: int, hold: int) -> Lease | None:
        """One create for one offer. None when the answer is unknown; reconcile resolves that.

        Left idle and uncalled, the machine stops itself before that has cost `hold` micro-dollars.

        Raises OfferGone, NoCredit, RateLimited, MarketRefused or CredentialsRefused when the market definitely
        refused, LostRace when a command changed the job since it was read, which comes first, or when a machine of it
        that was gone has come back meanwhile.
        """
        secret = secrets.token_hex(32)
        with self.database.write() as c:
            jobs.refuse_changed(c, job)
            if (back := leases.live(c, job.id)) is not None:
                raise LostRace(f"instance {back.instance_id} of job {job.id} is there again")
            install = get_meta(c, "install_id") or ""
            label = ids.label(install, job.id, ids.nonce())
            request = {
                "offer": offer.id,
                "image": self.settings.image.ref,
                "disk_gb": disk_gb,
                "challenge": secret,
                "terms": _terms(offer),
            }
            operation = operations.intend(
                c, Kind.CREATE, self.clock.wall_ms(), self.database.epoch, request, job_id=job.id, label=label
            )
        body = CreateRequest(
            offer_id=offer.id,
            image=self.settings.image.ref,
            disk_gb=disk_gb,
            label=label,
            onstart=onstart.script(self.settings.image, away_limit_s(hold, offer.price_per_hour)),
            env={challenge.ENV_NAME: secret},
        )
        reply = await self._send(operation, lambda: self.market.create(body))
        if reply is None:
            return None
        if reply.instance_id is None:
            self._resolve(operation, OpState.UNKNOWN, "the reply names no instance")
            return None
        with self.database.write() as c:
            now = self.clock.wall_ms()
            if is_anothers(c, operation, reply.instance_id):
                said = f"the reply names instance {reply.instance_id}, which is another's"
                operations.set_state(c, operation, OpState.UNKNOWN, now, error=said)
                return None
            return adopt(c, operation, reply.instance_id, LeaseState.LIVE, now)

    async def start(self, lease: Lease) -> None:
        """Start; a start that only queues is cancelled by a stop, since it would bill whenever the GPU frees."""
        operation = self._intend(Kind.START, lease)
        reply = await self._send(operation, lambda: self.market.start(lease.instance_id))
        if reply is None:
            return
        if not reply.queued:
            self._resolve(operation, OpState.DONE)
            return
        with self.database.write() as c:  # in one: after a crash the stop is there, to be asked for again
            operations.set_state(c, operation, OpState.DONE, self.clock.wall_ms())
            stop = self._intent(c, Kind.STOP, lease, why="the start was only queued")
        await self._perform_stop(stop, lease)

    async def stop(self, lease: Lease, why: str) -> None:
        await self._perform_stop(self._intend(Kind.STOP, lease, why=why), lease)

    async def _perform_stop(self, operation: int, lease: Lease) -> None:
        if await self._send(operation, lambda: self.market.stop(lease.instance_id)) is not None:
            self._resolve(operation, OpState.DONE)

    async def destroy(self, job: Job, lease: Lease, why: str) -> None:
        """Ask the market to destroy `lease`, if something permits it. DONE means accepted: reconcile confirms."""
        permit = permits.issue(self.database, self.clock, job, lease)
        log.info("destroy.permitted", job=job.id, instance=lease.instance_id, permit=permit.kind.value, why=why)
        reply = await self._send(permit.operation_id, lambda: self.market.destroy(permit))
        if reply is not None:
            self._resolve(permit.operation_id, OpState.DONE)

    def _intend(self, kind: Kind, lease: Lease, **request: Any) -> int:
        with self.database.write() as c:
            return self._intent(c, kind, lease, **request)

    def _intent(self, c: Connection, kind: Kind, lease: Lease, **request: Any) -> int:
        return operations.intend(
            c,
            kind,
            self.clock.wall_ms(),
            self.database.epoch,
            {"instance": lease.instance_id, **request},
            job_id=lease.job_id,
            lease_id=lease.id,
            instance_id=lease.instance_id,
        )

    def sent(self, operation: int) -> None:
        """SENT, and noted beside the database, so that an older copy which knows of no such request is recognised."""
        with self.database.write() as c:
            operations.set_state(c, operation, OpState.SENT, self.clock.wall_ms())
        self.note()

    def note(self) -> None:
        """A full disk costs the memory of how far we came, not the pass or the request: what bills has to be ended."""
        try:
            leader.note(self.database)
        except OSError as error:
            log.error("high_water.unwritten", error=str(error))

    async def _send(self, operation: int, call: Callable[[], Awaitable[Reply]]) -> Reply | None:
        """SENT, the call, the reply stored. None: unknown. A definite refusal is recorded and raised."""
        self.sent(operation)
        self.acted.set()
        self.in_flight.add(operation)
        try:
            reply = await call()
        except MarketUnreachable as error:
            self._record(operation, error.status, error.body, OpState.UNKNOWN, str(error))
            return None
        except MarketError as error:
            self._record(operation, error.status, error.body, OpState.REFUSED, str(error))
            raise
        except CredentialsRefused as error:
            self._record(operation, None, "", OpState.REFUSED, str(error))
            raise
        finally:
            self.in_flight.discard(operation)
        with self.database.write() as c:
            operations.store_reply(c, operation, reply.status, reply.body)
        return reply

    def _record(self, operation: int, status: int | None, body: str, state: OpState, error: str) -> None:
        with self.database.write() as c:
            operations.store_reply(c, operation, status, body)
            if operations.get(c, operation).state is OpState.SENT:  # else a listing was quicker than the answer
                operations.set_state(c, operation, state, self.clock.wall_ms(), error=error[:500])

    def _resolve(self, operation: int, state: OpState, error: str | None = None) -> None:
        with self.database.write() as c:
            operations.set_state(c, operation, state, self.clock.wall_ms(), error=error)


def is_anothers(c: Connection, operation: int, instance_id: int) -> bool:
    """Something else made it, and it is held: whoever names it as what `operation` made is wrong."""
    known = leases.by_instance(c, instance_id)
    return known is not None and known.is_held and known.operation_id != operation


def adopt(c: Connection, operation: int, instance_id: int, state: LeaseState, now_ms: int) -> Lease:
    """The create `operation` made `instance_id`: operation DONE and lease in the caller's transaction."""
    row = operations.get(c, operation)
    known = leases.by_instance(c, instance_id)
    if known is not None and known.operation_id == operation:
        return known  # the listing was quicker than the reply, or the other way round
    terms = json.loads(row.request)
    if row.state is not OpState.REFUSED:  # the market's word stands beside the machine that it made all the same
        operations.set_state(c, operation, OpState.DONE, now_ms)
    lease = leases.add(
        c, row, instance_id, row.label or "", state, now_ms, challenge=terms["challenge"], **terms["terms"]
    )
    return leases.get(c, lease)


def recover(database: Database, now_ms: int) -> None:
    """After a crash: what was only intended never happened, what was sent is unknown."""
    with database.write() as c:
        settle(c, operations.open_ones(c), now_ms, "the daemon ended")
        events.add(c, "daemon.started", now_ms, epoch=database.epoch)


def presume_work(c: Connection, lease: Lease, now_ms: int, epoch: int | None) -> None:
    """The database was restored: a stage may have been started since on what it calls unused. So it is not unused."""
    history = operations.of_lease(c, lease.id)
    letting_go = any(op.kind is Kind.DESTROY and op.state.may_have_happened for op in history)
    if lease.job_id is None or letting_go or any(op.may_have_begun_work for op in history):
        return
    start = operations.intend(
        c,
        Kind.STAGE_START,
        now_ms,
        epoch,
        {},
        job_id=lease.job_id,
        lease_id=lease.id,
        instance_id=lease.instance_id,
    )
    operations.set_state(c, start, OpState.SENT, now_ms)
    operations.set_state(c, start, OpState.UNKNOWN, now_ms, error="the database was restored")


def settle(c: Connection, forsaken: Iterable[Operation], now_ms: int, why: str) -> None:
    """Operations whose answer nobody waits for any more: an INTENT never left, a SENT one may have taken effect."""
    for op in forsaken:
        if op.state is OpState.INTENT:
            operations.set_state(c, op.id, OpState.ABSENT, now_ms, error=f"{why} before it was sent")
        elif op.state is OpState.SENT:
            operations.set_state(c, op.id, OpState.UNKNOWN, now_ms, error=f"{why} before the answer")


def _terms(offer: Offer) -> dict[str, Any]:
    """What of an offer the lease keeps: prices until the listing brings the market's own, and where it runs."""
    return {
        "machine_id": offer.machine_id,
        "host_id": offer.host_id,
        "gpu_name": offer.gpu_name,
        "num_gpus": offer.num_gpus,
        "price_per_hour": offer.price_per_hour,
        "up_per_gb": offer.inet_up_per_gb,
        "down_per_gb": offer.inet_down_per_gb,
    }
