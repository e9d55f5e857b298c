"""One pass of daemon/control/reconcile.py over the rows: only a trusted listing is evidence."""

from __future__ import annotations

from daemon.domain.lifecycle import JobState
from daemon.domain.market import HALTED, UNREACHABLE
from daemon.domain.records import Kind, LeaseState, OpState
from daemon.errors import CredentialsRefused, LostRace, MarketError
from tests.simulation.decision import operate
from tests.simulation.decision.market import Machine
from tests.simulation.decision.store import LeaseRow, OperationRow
from tests.simulation.decision.world import TIMING, World

ABSENT_LISTINGS = 2
GONE_SPAN_MS = TIMING.gone_span * 1000
_LOST = LeaseState.LOST  # looked up once


def run_once(w: World) -> bool:
    """Whether the listing was trusted."""
    if not is_trusted(w):
        w.last_pass = None
        return False
    w.trusted_passes += 1
    for lease in _apply(w):
        if lease.absent_count >= ABSENT_LISTINGS and w.now - w.memory.missed[lease.id] >= GONE_SPAN_MS:
            _confirm_gone(w, lease)
    for op in w.store.open(Kind.CREATE) if w.store.opened else ():
        enough = op.absent_count >= TIMING.create_absent_listings and op.absent_awake_s >= TIMING.create_absent_span
        if op.state is OpState.UNKNOWN and enough:
            w.store.set_state(op, OpState.ABSENT, w.wall)
    _end_late_arrivals(w)
    w.last_pass = w.awake
    return True


def is_trusted(w: World) -> bool:
    return w.now >= w.market.blind_until and w.now >= w.market.cut_until


def renew(w: World) -> None:
    """As daemon/store/leader.py. That nothing lies in the future is known without a look while no clock is set back."""
    if w.set_back:
        w.store.undo_step(w.wall)
        w.set_back = False
    w.store.renewed = w.wall


def _apply(w: World) -> list[LeaseRow]:
    """The held leases that the listing lacks."""
    store, now = w.store, w.wall
    awake_s = (w.awake - w.last_pass) / 1000 if w.last_pass is not None else 0.0
    store.credit = w.market.credit
    listed = w.listed()
    for machine in listed:
        lease = store.by_instance(machine.id)
        if lease is None and machine.ours and machine.label_shown == "":
            lease = _recognise(w, machine)
        if lease is None:
            continue
        if not lease.is_held:
            _reopen(w, lease)
        store.observe(lease, machine, now, w.now, w.market.end_ms)
    present = {machine.id: machine for machine in listed}
    missed = [lease for lease in store.leases if lease.is_held and lease.instance_id not in present]
    for lease in missed:
        lease.absent_count, lease.absent_first = lease.absent_count + 1, lease.absent_first or now
    w.memory.missed = {lease.id: w.memory.missed.get(lease.id, w.now) for lease in missed}
    opened = [op for op in store.opened if op.kind is not Kind.STAGE_START]
    store.settle([op for op in opened if op.id not in w.memory.in_flight], now)
    for op in opened:
        if op.state is OpState.UNKNOWN:
            _resolve(w, op, present, awake_s)
    return missed


def _recognise(w: World, machine: Machine) -> LeaseRow:
    create = next(op for op in w.store.operations if op.label == machine.label)
    other_open = any(op.id != create.id for op in w.store.open(Kind.CREATE))
    wanted = not w.store.job.state.is_terminal and w.store.live is None and not other_open
    return operate.adopt(w, create, machine.id, LeaseState.LIVE if wanted else LeaseState.LOST)


def _reopen(w: World, lease: LeaseRow) -> None:
    if lease.state is LeaseState.WRITTEN_OFF:
        return
    lost = w.store.live is not None or w.store.job.state.is_terminal
    w.store.set_lease_state(lease, LeaseState.LOST if lost else LeaseState.LIVE, w.wall)


def _confirm_gone(w: World, lease: LeaseRow) -> None:
    if w.market.show(lease.instance_id, w.now):
        return
    for op in w.store.of_lease(lease):
        if op.kind is Kind.DESTROY and op.state is OpState.UNKNOWN:
            w.store.set_state(op, OpState.DONE, w.wall)
    w.store.set_lease_state(lease, LeaseState.GONE, w.wall)


def _end_late_arrivals(w: World) -> None:
    for lease in [lease for lease in w.store.leases if lease.state is _LOST]:
        history = w.store.of_lease(lease)
        unused = not any(op.may_have_begun_work for op in history)
        recent = [op for op in history if w.wall - op.created_at < TIMING.destroy_resend * 1000]
        may_run = lease.status not in (*HALTED, *UNREACHABLE)
        if may_run and not any(op.kind is Kind.STOP for op in recent):
            _try(w, operate.stop(w, lease))
        ours = lease.operation_id is not None or any(op.kind is Kind.DESTROY for op in history)
        by_receipt = w.store.job.state is JobState.DESTROYED and ours
        if (unused or by_receipt) and not any(op.kind is Kind.DESTROY for op in recent):
            _try(w, operate.destroy(w, w.store.job.version, lease))


def _try(w: World, act: operate.Act) -> None:
    try:
        for _ in act:
            pass
    except (MarketError, CredentialsRefused, operate.NoPermit, operate.ArtifactLost, LostRace):
        pass  # tried again in the next pass


def _resolve(w: World, op: OperationRow, listed: dict[int, Machine], awake_s: float) -> None:
    store, now = w.store, w.wall
    machine = listed.get(op.instance_id or 0)
    if op.kind is Kind.CREATE:
        op.absent_count += 1
        op.absent_awake_s += min(awake_s, max(0, now - (op.sent_at or now)) / 1000)
    elif op.kind is Kind.DESTROY:
        lease = next(lease for lease in store.leases if lease.id == op.lease_id)
        if machine is not None and now - (op.sent_at or now) > TIMING.destroy_resend * 1000:
            store.set_state(op, OpState.ABSENT, now)
        elif machine is None and not lease.is_held:
            store.set_state(op, OpState.DONE, now)
    elif op.kind in (Kind.START, Kind.STOP):
        want = "running" if op.kind is Kind.START else "stopped"
        happened = machine is not None and machine.intended == want
        store.set_state(op, OpState.DONE if happened else OpState.ABSENT, now)
        if op.kind is Kind.START and machine is not None and machine.queued_passes >= 0:  # nobody heard that it queued
            stop = store.intend(Kind.STOP, now, lease_id=op.lease_id, instance_id=op.instance_id)
            store.set_state(stop, OpState.ABSENT, now)
