"""Intent, send, record, and the permit: what daemon/control/operate.py, permits.py and attempts.py do to rows.

An act that leaves this process is a generator. It yields `BEFORE` when its intent is written and nothing has left, and
`AFTER` when the effect took place and nothing of it is written; a crash may come at either.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from daemon.domain.records import Kind, LeaseState, OpState
from daemon.errors import CredentialsRefused, HomeportError, LostRace, MarketError, MarketUnreachable
from tests.simulation.decision.store import LeaseRow, OperationRow
from tests.simulation.decision.world import World

BEFORE, AFTER = "before", "after"
SIDES = (BEFORE, AFTER)
CALL_MS = 1000
STRIDE, UNTIL_PASS = -1, -2  # instead of milliseconds: a while, or until the market was listed again
Act = Generator[tuple[str, int], None, None]
Sending = Generator[tuple[str, int], None, "Reply | None"]


class NoPermit(HomeportError):
    """Nothing permits this destroy."""


class ArtifactLost(HomeportError):
    """The receipt does not describe this disk any more."""


@dataclass(frozen=True)
class Reply:
    instance: int | None = None
    queued: bool = False


def rent(w: World, version: int) -> Act:
    if version != w.store.job.version:
        raise LostRace("a command came first")
    op = w.store.intend(Kind.CREATE, w.wall, label=f"hp-i-{w.store.job.id}-{len(w.store.operations)}")
    reply = yield from _send(w, op, lambda: Reply(w.market.create(op.label or "", w.now)))
    if reply is None:
        return
    if reply.instance is None:
        if op.state is OpState.SENT:
            w.store.set_state(op, OpState.UNKNOWN, w.wall)
        return
    adopt(w, op, reply.instance, LeaseState.LIVE)


def start(w: World, lease: LeaseRow) -> Act:
    op = _intend(w, Kind.START, lease)
    reply = yield from _send(w, op, lambda: Reply(queued=w.market.start(lease.instance_id, w.now)))
    if reply is None:
        return
    w.store.set_state(op, OpState.DONE, w.wall)
    if reply.queued:
        yield from stop(w, lease)


def stop(w: World, lease: LeaseRow) -> Act:
    op = _intend(w, Kind.STOP, lease)  # in `start`, nothing comes between this and the record before
    if (yield from _send(w, op, lambda: _told(w.market.stop(lease.instance_id, w.now)))) is not None:
        w.store.set_state(op, OpState.DONE, w.wall)


def destroy(w: World, version: int, lease: LeaseRow) -> Act:
    """Raises NoPermit, ArtifactLost, LostRace."""
    op = permit(w, version, lease)
    if (yield from _send(w, op, lambda: _told(w.market.destroy(lease.instance_id, w.now)))) is not None:
        w.store.set_state(op, OpState.DONE, w.wall)


def permit(w: World, version: int, lease: LeaseRow) -> OperationRow:
    """As daemon/control/permits.py: one of the three facts, and the destroy's INTENT."""
    store = w.store
    receipt = store.current_receipt()
    if receipt is not None and w.home.touched:
        raise ArtifactLost("the folder was changed")
    token = store.usable_token(lease.instance_id, w.wall)
    if not any(op.may_have_begun_work for op in store.of_lease(lease)):
        kind, reference = "unused", None
    elif receipt is not None:
        kind, reference = "receipt", receipt.id
    elif token is not None:
        kind, reference = "token", token.id
    else:
        raise NoPermit("nothing permits it")
    store.change(version)
    op = _intend(w, Kind.DESTROY, lease, permit=kind, permit_ref=reference)
    if kind == "token" and token is not None:
        token.used_by = op.id
    return op


def adopt(w: World, op: OperationRow, instance: int, state: LeaseState) -> LeaseRow:
    known = w.store.by_instance(instance)
    if known is not None and known.operation_id == op.id:
        return known
    if op.state is not OpState.REFUSED:
        w.store.set_state(op, OpState.DONE, w.wall)
    return w.store.add_lease(op, instance, state, w.wall, w.market.price, w.market.storage)


def recover(w: World) -> None:
    w.store.settle(list(w.store.opened), w.wall)


def _intend(w: World, kind: Kind, lease: LeaseRow, **values: object) -> OperationRow:
    return w.store.intend(kind, w.wall, lease_id=lease.id, instance_id=lease.instance_id, **values)


def _told(_: None) -> Reply:
    return Reply()


def _send(w: World, op: OperationRow, call: Callable[[], Reply]) -> Sending:
    """None: unknown. A definite refusal is recorded and raised."""
    w.memory.in_flight.add(op.id)
    yield BEFORE, CALL_MS
    w.store.set_state(op, OpState.SENT, w.wall)
    w.pass_soon = True
    reply, refusal = None, None
    try:
        reply = call()
    except (MarketError, CredentialsRefused) as error:
        refusal = error
    yield AFTER, CALL_MS
    w.memory.in_flight.discard(op.id)
    if refusal is not None:
        unknown = isinstance(refusal, MarketUnreachable)
        if op.state is OpState.SENT:
            w.store.set_state(op, OpState.UNKNOWN if unknown else OpState.REFUSED, w.wall)
        if not unknown:
            raise refusal
    return reply
