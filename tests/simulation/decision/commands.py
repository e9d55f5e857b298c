"""A person's commands, as daemon/control/commands.py changes the rows. Each raises Refused and changes nothing then."""

from __future__ import annotations

from collections.abc import Callable

from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import EDGES, JobState, Trigger
from daemon.domain.records import Kind, LeaseState, Wish
from daemon.errors import Refused
from tests.simulation.decision.world import World

RETRY_STATES = frozenset(edge.source for edge in EDGES if edge.trigger is Trigger.RETRY)


def hold(w: World) -> None:
    _refuse_if_letting_go(w)
    _void(w)
    w.store.hold(w.store.job.version, HoldReason.BY_PERSON, "held by you", w.wall, by="me")


def resume(w: World) -> None:
    job = w.store.job
    _refuse_if_letting_go(w)
    if job.hold_reason is None:
        raise Refused("not held")
    was_asked = w.store.live is None or w.take().rescued
    if job.hold_reason is HoldReason.BUDGET and w.take().is_training and was_asked:
        raise Refused("the limit is spent")
    _void(w)
    if job.hold_reason is HoldReason.GONE and w.store.live is None:
        _again(w, keep=False, fresh=True)
        return
    w.store.release(job.version, w.wall, by="me")


def retry(w: World, redo: str | None = None) -> None:
    _refuse_if_letting_go(w)
    if w.store.job.state not in RETRY_STATES:
        raise Refused("nothing to retry")
    _again(w, keep=True, fresh=redo is not None, redo=redo)


def _again(w: World, *, keep: bool, fresh: bool, redo: str | None = None) -> None:
    store, job = w.store, w.store.job
    runs = store.of_attempt()
    names = [run.stage for run in runs]
    upto = names.index(redo) if redo else len(names)
    kept = [run for run in runs[:upto] if run.done_json] if keep and store.live else []
    if redo is None and len(kept) == len(runs):
        kept = kept[:-1]
    changes = store.begin_again(keep=tuple(kept), fresh=fresh)
    w.typed.clear()
    if job.state is JobState.QUEUED:
        store.release(job.version, w.wall, by="me")
        store.change(job.version, **changes)
    else:
        store.move(job.version, JobState.QUEUED, w.wall, by="me", spoken_at=w.wall, wish=None, **changes)


def cancel(w: World) -> None:
    _refuse_if_terminal(w)
    _void(w)
    w.store.wish(w.store.job.version, Wish.CANCEL, w.wall, by="me")


def discard(w: World) -> None:
    _give_up(w, Wish.DISCARD)


def abandon(w: World) -> None:
    _give_up(w, Wish.ABANDON)


def _give_up(w: World, wish: Wish) -> None:
    """The person reads which instance it is and types its id."""
    _refuse_if_terminal(w)
    store = w.store
    risky = [
        lease for lease in store.leases if lease.is_held and any(op.may_have_begun_work for op in store.of_lease(lease))
    ]
    if risky:
        store.add_token(risky[0].instance_id, "me", w.wall)
        w.typed[risky[0].instance_id] = (store.job.attempt, w.now)
    store.wish(store.job.version, wish, w.wall, by="me")


def accept(w: World) -> None:
    if w.store.job.hold_reason is not HoldReason.ASK_DESTROY:
        raise Refused("does not wait to be accepted")
    resume(w)


def write_off(w: World) -> None:
    lease = next((lease for lease in w.store.leases if lease.is_held), None)
    if lease is None:
        raise Refused("no lease")
    w.store.set_lease_state(lease, LeaseState.WRITTEN_OFF, w.wall)


COMMANDS: dict[str, Callable[[World], None]] = {
    "hold": hold,
    "resume": resume,
    "retry": retry,
    "retry from gguf": lambda w: retry(w, "GGUF"),
    "cancel": cancel,
    "cancel --discard": discard,
    "abandon": abandon,
    "accept": accept,
    "write-off": write_off,
}


def _void(w: World) -> None:
    w.store.void_tokens(w.wall)
    w.typed.clear()


def _refuse_if_terminal(w: World) -> None:
    if w.store.job.state.is_terminal:
        raise Refused("already over")


def _refuse_if_letting_go(w: World) -> None:
    _refuse_if_terminal(w)
    for lease in w.store.leases:
        if lease.is_held and any(
            op.kind is Kind.DESTROY and op.state.may_have_happened for op in w.store.of_lease(lease)
        ):
            raise Refused("the destroy is on its way")
