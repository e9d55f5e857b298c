"""What each action of the plan does: daemon/control/acts.py, watch.py and provision.py, as far as rows go.

One generator an action; see operate.py for what it yields. Box calls raise what the connection would raise.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ENOSPC
from functools import lru_cache
from math import ceil
from typing import Any

from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import Trigger
from daemon.domain.machine import Facts, fire
from daemon.domain.plan import plan, silence_limit
from daemon.domain.records import Kind, LeaseState, OpState
from daemon.domain.snapshot import Snapshot
from daemon.errors import (
    AccessDenied,
    HostKeyChanged,
    LinkLost,
    LostRace,
    NoCredit,
    OfferGone,
    RemoteFailed,
    TransferFailed,
)
from tests.simulation.decision import operate
from tests.simulation.decision.market import HOUR_MS, Machine
from tests.simulation.decision.operate import AFTER, BEFORE, STRIDE, UNTIL_PASS, Act
from tests.simulation.decision.store import LeaseRow, ReportRow
from tests.simulation.decision.world import World

START = {"SFT": Trigger.START_SFT, "DPO": Trigger.START_DPO, "GGUF": Trigger.START_GGUF}
LOOK_MS, PROVISION_MS, VERIFY_MS, DOWNLOAD_MS, SAVE_MS = 2_000, 180_000, 60_000, 240_000, 60_000
PAUSE_MS = 30_000
STOPPING_MS = 30_000
_fire = lru_cache(maxsize=None)(fire)


def wait(w: World, s: Snapshot, action: actions.Wait) -> Act:
    yield BEFORE, UNTIL_PASS


def rent(w: World, s: Snapshot, action: actions.Rent) -> Act:
    """One offer, after a trusted listing that shows no machine of this job we do not know."""
    version = w.store.job.version
    if w.now < w.market.blind_until or w.now < w.market.cut_until:
        yield BEFORE, PAUSE_MS
        return
    known = {lease.instance_id for lease in w.store.leases if lease.is_held or lease.state is LeaseState.WRITTEN_OFF}
    if any(m.ours and m.label_shown == "" and m.id not in known for m in w.listed()):
        yield BEFORE, PAUSE_MS  # reconcile adopts it
        return
    for _ in range(3 if w.market.offers else 0):
        try:
            yield from operate.rent(w, version)
            w.memory.nothing_fits_since_ms = None
            return
        except OfferGone:
            continue
        except NoCredit as error:
            hold(w, version, HoldReason.NO_CREDIT, str(error))
            return
    yield BEFORE, 0
    if w.memory.nothing_fits_since_ms is None:
        w.memory.nothing_fits_since_ms = w.wall
    w.memory.asked_market_ms = w.wall
    yield AFTER, 0


def prove(w: World, s: Snapshot, action: actions.Prove) -> Act:
    lease = action.lease
    yield BEFORE, LOOK_MS
    machine = box(w, s, lease)
    yield AFTER, 0
    lease.host_key = machine.key


def provision(w: World, s: Snapshot, action: actions.Provision) -> Act:
    lease, version, attempt = action.lease, w.store.job.version, w.store.job.attempt
    yield BEFORE, PROVISION_MS
    machine = box(w, s, lease)
    if machine.refuses == "machine":
        if w.take().work_started(lease):
            hold(w, version, HoldReason.INTERNAL, "preflight")
        else:
            yield from operate.destroy(w, version, lease)
        return
    if machine.refuses:
        hold(w, version, HoldReason[machine.refuses], "refused by prepare")
        return
    runs = w.store.runs[attempt]
    machine.tell(tuple((run.nonce, run.stage) for run in runs), bool(runs[0].fresh))
    yield AFTER, 0
    w.store.change(version)
    lease.provisioned = attempt


def start_machine(w: World, s: Snapshot, action: actions.StartMachine) -> Act:
    yield from operate.start(w, action.lease)


def stop_machine(w: World, s: Snapshot, action: actions.StopMachine) -> Act:
    yield from operate.stop(w, action.lease)


def start_stage(w: World, s: Snapshot, action: actions.StartStage) -> Act:
    run, lease, store = action.run, action.lease, w.store
    version = store.job.version
    op = store.intend(
        Kind.STAGE_START, w.wall, lease_id=lease.id, instance_id=lease.instance_id, nonce=run.nonce, stage=run.stage
    )
    yield BEFORE, LOOK_MS
    store.set_state(op, OpState.SENT, w.wall)
    failure: LinkLost | AccessDenied | HostKeyChanged | None = None
    try:
        box(w, s, lease).start_stage(run.nonce)
    except (LinkLost, AccessDenied, HostKeyChanged) as error:
        failure = error
    yield AFTER, 0
    if failure is not None:
        never_told = isinstance(failure, AccessDenied | HostKeyChanged)
        store.set_state(op, OpState.REFUSED if never_told else OpState.UNKNOWN, w.wall)
        raise failure
    if version != store.job.version:
        raise LostRace("a command came first")
    for each in store.operations:
        if each.kind is Kind.STAGE_START and each.nonce == run.nonce and each.state in (OpState.SENT, OpState.UNKNOWN):
            store.set_state(each, OpState.DONE, w.wall)
    run.started_at = run.started_at or w.wall
    _follow(w, s, version, run.stage)


def _follow(w: World, s: Snapshot, version: int, stage: str) -> None:
    names = [run.stage for run in s.stages]
    state = w.store.job.state
    passed = names.index(state) + 1 if state in names else 0
    for name in names[passed : names.index(stage) + 1]:
        to = _fire(w.store.job.state, START[name], _facts(s))
        w.store.move(version, to, w.wall)
        version += 1


def watch(w: World, s: Snapshot, action: actions.Watch) -> Act:
    run = action.run
    yield BEFORE, LOOK_MS
    machine = box(w, s, action.lease)
    _report(w, int(machine.alive))
    yield AFTER, 0
    found = machine.work.get(run.nonce)
    if machine.forges_next:
        machine.forges_next = False
        raise RemoteFailed("done.json names another nonce", exit_code_remote=0)
    known = w.memory.failure
    w.memory.failure = (run.nonce, found.failed) if found is not None and found.failed else None
    ended = found is not None and found.done_at is not None
    if not ended:
        w.memory.looked_ms, w.looked_at = w.wall, w.now
    if ended:
        run.done_at, run.done_json = w.wall, "{}"
    elif w.memory.failure == known:
        yield BEFORE, STRIDE  # nothing learned: until something may have changed


def stop_stages(w: World, s: Snapshot, action: actions.StopStages) -> Act:
    yield BEFORE, LOOK_MS
    machine = box(w, s, action.lease)
    machine.kill_runner()
    yield AFTER, STOPPING_MS
    _report(w, 0)
    run = s.stage
    found = machine.work.get(run.nonce) if run is not None else None
    if run is not None and found is not None and found.done_at is not None:
        run.done_at, run.done_json = w.wall, "{}"


def fetch_manifest(w: World, s: Snapshot, action: actions.FetchManifest) -> Act:
    version = w.store.job.version
    yield BEFORE, LOOK_MS
    machine = box(w, s, action.lease)
    run = s.stages[-1]
    found = machine.work.get(run.nonce)
    if found is None or found.done_at is None or w.home.spoils:
        w.home.spoils = max(0, w.home.spoils - 1)
        raise TransferFailed("the manifest is not the one that done.json names")
    yield AFTER, 0
    w.store.change(version, manifest_sha256=f"m.{run.nonce}", manifest_json="{}")


def download(w: World, s: Snapshot, action: actions.Download) -> Act:
    yield BEFORE, DOWNLOAD_MS
    box(w, s, action.lease)
    _transfer(w)
    manifest = w.store.job.manifest_sha256 or ""
    w.home.whole.add(manifest)
    yield AFTER, 0
    w.store.downloaded = manifest


def save(w: World, s: Snapshot, action: actions.Save) -> Act:
    yield BEFORE, SAVE_MS
    box(w, s, action.lease)
    _transfer(w)
    w.home.saved_at = w.now
    yield AFTER, 0
    w.store.note("saved")


def verify(w: World, s: Snapshot, action: actions.Verify) -> Act:
    job = w.store.job
    version, manifest = job.version, job.manifest_sha256 or ""
    yield BEFORE, VERIFY_MS
    if not w.home.room:
        raise OSError(ENOSPC, "no room")
    if not w.home.verifies or manifest not in w.home.whole:
        hold(w, version, HoldReason.VERIFY_FAILED, "L3")
        return
    w.home.proven.add((job.attempt, manifest))
    w.home.touched = False
    yield AFTER, 0
    if version != job.version:
        raise LostRace("a command came first")
    w.store.add_receipt(w.wall)
    w.store.move(version, _fire(job.state, Trigger.VERIFY, _facts(s, has_receipt=True)), w.wall)


def destroy(w: World, s: Snapshot, action: actions.Destroy) -> Act:
    yield from operate.destroy(w, w.store.job.version, action.lease)


def mark_lost(w: World, s: Snapshot, action: actions.MarkLost) -> Act:
    version = w.store.job.version
    yield BEFORE, 0
    if version != w.store.job.version:
        raise LostRace("a command came first")
    w.store.set_lease_state(action.lease, LeaseState.LOST, w.wall)
    w.store.change(version, **w.store.begin_again(keep=(), fresh=True))
    yield AFTER, 0


def move(w: World, s: Snapshot, action: actions.Move) -> Act:
    version = w.store.job.version
    to = _fire(w.store.job.state, action.trigger, _facts(s))
    yield BEFORE, 0
    w.store.move(version, to, w.wall)
    yield AFTER, 0


def hold_job(w: World, s: Snapshot, action: actions.HoldJob) -> Act:
    version = w.store.job.version
    yield BEFORE, 0
    if action.reason is not HoldReason.BUDGET or _is_held_all_the_same(w, action):
        hold(w, version, action.reason, action.detail)
    yield AFTER, 0


def _is_held_all_the_same(w: World, action: actions.HoldJob) -> bool:
    """By the market's own charges too, which here are exact and never late."""
    if w.now < w.market.blind_until or w.now < w.market.cut_until:
        return True
    for lease in w.store.leases:
        machine = w.market.by_id(lease.instance_id)
        if machine is not None:
            w.store.recount(lease, ceil(machine.cost), w.wall)
    again = plan(w.take())
    return isinstance(again, actions.HoldJob) and again.reason is action.reason


TABLE: dict[type[actions.Action], Callable[[World, Snapshot, Any], Act]] = {
    actions.Wait: wait,
    actions.Rent: rent,
    actions.Prove: prove,
    actions.Provision: provision,
    actions.StartMachine: start_machine,
    actions.StopMachine: stop_machine,
    actions.StartStage: start_stage,
    actions.Watch: watch,
    actions.StopStages: stop_stages,
    actions.FetchManifest: fetch_manifest,
    actions.Download: download,
    actions.Save: save,
    actions.Verify: verify,
    actions.Destroy: destroy,
    actions.MarkLost: mark_lost,
    actions.Move: move,
    actions.HoldJob: hold_job,
}


def hold(w: World, version: int, reason: HoldReason, detail: str) -> None:
    w.store.hold(version, reason, detail, w.wall, since=w.store.job.hold_since)


def artifact_lost(w: World) -> None:
    """The receipt is void, back to GGUF, held for the person."""
    store, w.home.touched = w.store, False
    store.supersede()
    store.downloaded = None
    w.home.whole.discard(store.job.manifest_sha256 or "")
    to = _fire(store.job.state, Trigger.ARTIFACT_LOST, _facts(w.take()))
    store.move(store.job.version, to, w.wall)
    hold(w, store.job.version, HoldReason.ARTIFACT_LOST, "the folder was changed")


def box(w: World, s: Snapshot, lease: LeaseRow) -> Machine:
    """The box behind `lease`, called just now. Raises LinkLost, AccessDenied or HostKeyChanged."""
    machine = w.market.by_id(lease.instance_id)
    if machine is None or not machine.is_up(w.now) or w.now < w.market.cut_until:
        raise LinkLost("no connection")
    if lease.host_key is not None and machine.key != lease.host_key:
        raise HostKeyChanged("another key")
    if machine.denies:
        machine.denies = False
        raise AccessDenied("key refused")
    machine.called_at, machine.known_price = w.now, machine.listed_price
    machine.away_ms = round(silence_limit(s, lease) / lease.price_per_hour * HOUR_MS)
    return machine


def _transfer(w: World) -> None:
    if not w.home.room:
        raise OSError(ENOSPC, "no room")
    if w.home.spoils:
        w.home.spoils -= 1
        raise TransferFailed("a block hashed wrong three times")


def _report(w: World, alive: int) -> None:
    attempt = w.store.job.attempt
    w.store.report = ReportRow(w.store.job.id, attempt, None, alive, w.wall, None, 0, 0)


def _facts(s: Snapshot, *, has_receipt: bool | None = None) -> Facts:
    names = [run.stage for run in s.stages]
    receipt = s.receipt is not None if has_receipt is None else has_receipt
    return Facts("SFT" in names, "DPO" in names, s.nothing_rented, receipt)
