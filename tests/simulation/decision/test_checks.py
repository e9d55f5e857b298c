"""Every check of this tier is seen to fire: one thing made wrong in a small ledger, and one look at it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState, Trigger
from daemon.domain.records import Kind, LeaseState, OpState
from tests.simulation.decision import checks
from tests.simulation.decision.checks import AT
from tests.simulation.decision.market import HOUR_MS, Machine
from tests.simulation.decision.run import Run
from tests.simulation.decision.store import LeaseRow, OperationRow

RENTED = 100


def ledger() -> Run:
    """A run an hour old, in which nothing has happened."""
    run = Run(1)
    run.w.now = HOUR_MS
    run.passed_at = run.w.now
    return run


def rent(run: Run, instance: int = RENTED, *, known: bool = True, state: LeaseState = LeaseState.LIVE) -> Machine:
    """A running machine at the market and, if it is `known`, its lease."""
    w = run.w
    machine = Machine(instance, f"hp-{instance}", 2_000_000, 20_000, 0, HOUR_MS, actual="running", now=w.now)
    w.market.machines.append(machine)
    if known:
        op = create(run, machine.label, OpState.DONE)
        lease = w.store.add_lease(op, instance, LeaseState.LOST, w.wall, machine.price, machine.storage)
        lease.state, lease.status, lease.intended, lease.observed_ms = state, "running", "running", w.wall
    return machine


def create(run: Run, label: str, state: OpState) -> OperationRow:
    row = run.w.store.intend(Kind.STOP, run.w.wall, label=label)  # a create beside a machine is refused
    row.kind = Kind.CREATE
    if state is not row.state:
        run.w.store.set_state(row, state, run.w.wall)
    return row


def lease_of(run: Run) -> LeaseRow:
    return run.w.store.leases[-1]


def snapshot(run: Run) -> Any:
    return run.w.take()


def _destroys_work(run: Run) -> None:
    rent(run).begun.add("n1.SFT")
    checks.at_destroy(run, run.w.market.machines[-1])


def _verified_unproven(run: Run) -> None:
    checks.at_move(run, JobState.DOWNLOADED, JobState.VERIFIED, False)


def _two_live(run: Run) -> None:
    rent(run)
    rent(run, RENTED + 1)
    checks.after_step(run)


def _lost_runs_on(run: Run) -> None:
    rent(run, state=LeaseState.LOST)
    checks.after_pass(run)


def _rents_a_second(run: Run) -> None:
    rent(run)
    rent(run, RENTED + 1, known=False)
    create(run, "hp-new", OpState.SENT).sent_at = run.w.wall
    run.w.market.labels.append("hp-new")
    checks.at_create(run, run.w.now)


def _lost_at_the_end(run: Run) -> None:
    rent(run, state=LeaseState.LOST)
    hold(run)
    checks.at_end(run)


def _unknown_machine(run: Run) -> None:
    rent(run, known=False)
    hold(run)
    checks.at_end(run)


def _ends_with_a_lease(run: Run) -> None:
    rent(run)
    checks.at_action(run, snapshot(run), actions.Move(Trigger.CANCEL))


def _over_and_billing(run: Run) -> None:
    rent(run)
    checks.at_move(run, JobState.VERIFIED, JobState.DESTROYED, False)


def _gone_and_billing(run: Run) -> None:
    rent(run, state=LeaseState.GONE)
    hold(run)
    checks.at_end(run)


def _create_unwritten(run: Run) -> None:
    run.w.market.labels.append("hp-unwritten")
    checks.at_create(run, run.w.now)


def _label_twice(run: Run) -> None:
    run.w.market.labels += ["hp-a", "hp-a"]
    checks.at_create(run, run.w.now)


def _backwards(run: Run) -> None:
    checks.at_move(run, JobState.DPO, JobState.SFT, False)


def _too_cheap(run: Run) -> None:
    rent(run).cost = 9_000_000.0
    checks.after_pass(run)


def _cost_falls(run: Run) -> None:
    run.recorded = 9_000_000
    checks.after_pass(run)


def _hold_is_dear(run: Run) -> None:
    checks.in_hold(run, rent(run), 9e6)


def _absence_is_dear(run: Run) -> None:
    checks.in_absence(run, rent(run), 9e6)


def _queue_is_left(run: Run) -> None:
    rent(run).queued_passes = checks.QUEUED_PASSES
    checks.after_pass(run)


def _more_than_the_reserve_is_spent(run: Run) -> None:
    run.w.rules = SimpleNamespace(cost_limit=3_000_000, reserve=1_000_000)  # type: ignore[assignment]
    rent(run).cost = 9_000_000.0
    run.w.store.job.state, run.w.store.job.spoken_at = JobState.GGUF, run.w.wall - 9 * HOUR_MS
    checks.after_step(run)


def _reserve_is_spent(run: Run) -> None:
    run.w.rules = SimpleNamespace(cost_limit=3_000_000, reserve=1_000_000)  # type: ignore[assignment]
    rent(run).cost = 2_900_000.0
    run.w.store.job.state = JobState.SFT
    checks.after_step(run)


def _stops_unsaved(run: Run) -> None:
    rent(run).begun.add("n1.SFT")
    hold(run)
    run.held_from = run.w.now
    checks.at_action(run, snapshot(run), actions.StopMachine(lease_of(run), "over the limit"))


def _absent_too_soon(run: Run) -> None:
    checks.at_absent(run, create(run, "hp-a", OpState.UNKNOWN))


def _absent_asleep(run: Run) -> None:
    run.w.trusted_passes, run.w.now = 100, 2 * HOUR_MS
    run.w.asleep_ms = 2 * HOUR_MS
    checks.at_absent(run, create(run, "hp-a", OpState.UNKNOWN))


def _lost_at_once(run: Run) -> None:
    rent(run)
    lease_of(run).status_since = run.w.wall
    checks.at_action(run, snapshot(run), actions.MarkLost(lease_of(run), "offline"))


def _answering_is_lost(run: Run) -> None:
    rent(run)
    lease_of(run).status_since, lease_of(run).provisioned = 1, run.w.store.job.attempt
    run.reached_at = run.w.now
    checks.at_action(run, snapshot(run), actions.MarkLost(lease_of(run), "offline"))


def _foreign_touched(run: Run) -> None:
    run.w.market.foreign_touched = 1
    checks.after_step(run)


def _held_for_nothing(run: Run) -> None:
    run.w.store.job.hold_reason = "NO_REASON"  # type: ignore[assignment]
    checks.after_step(run)


def _neither_over_nor_held(run: Run) -> None:
    checks.at_end(run)


def _never_followed(run: Run) -> None:
    rent(run).destroy_asked = 1
    run.w.store.job.state = JobState.CANCELLED
    checks.at_end(run)


def _sent_for_ever(run: Run) -> None:
    create(run, "hp-a", OpState.SENT)
    hold(run)
    checks.at_end(run)


def hold(run: Run) -> None:
    run.w.store.hold(run.w.store.job.version, HoldReason.BY_PERSON, "", run.w.wall)


FIRES: tuple[tuple[str, Callable[[Run], None]], ...] = (
    ("I1", _destroys_work),
    ("I2", _verified_unproven),
    ("I3", _two_live),
    ("I3", _lost_runs_on),
    ("I3", _rents_a_second),
    ("I3", _lost_at_the_end),
    ("I4", _unknown_machine),
    ("I5", _ends_with_a_lease),
    ("I5", _over_and_billing),
    ("I5", _gone_and_billing),
    ("I6", _create_unwritten),
    ("I7", _label_twice),
    ("I8", _backwards),
    ("I10", _too_cheap),
    ("I10", _cost_falls),
    ("I11", _hold_is_dear),
    ("I11", _absence_is_dear),
    ("I11", _queue_is_left),
    ("I11", _reserve_is_spent),
    ("I11", _more_than_the_reserve_is_spent),
    ("I11", _stops_unsaved),
    ("I16", _absent_too_soon),
    ("I16", _absent_asleep),
    ("I16", _lost_at_once),
    ("I16", _answering_is_lost),
    ("I17", lambda run: checks.at_untrusted(run, (1,), (2,))),
    ("I18", _foreign_touched),
    ("I19", lambda run: checks.at_move(run, JobState.SFT, JobState.CANCELLED, False)),
    ("I22", lambda run: checks.at_action(run, snapshot(run), actions.Wait(""))),
    ("I22", _held_for_nothing),
    ("I23", _neither_over_nor_held),
    ("I23", _never_followed),
    ("I23", _sent_for_ever),
)


@pytest.mark.parametrize(("invariant", "spoil"), FIRES, ids=lambda value: getattr(value, "__name__", value))
def test_it_fires(invariant: str, spoil: Callable[[Run], None]) -> None:
    """What was made wrong is seen, under the invariant that it violates."""
    with pytest.raises(checks.Violation, match=f"^{invariant}:"):
        spoil(ledger())


def test_every_check_is_in_the_table() -> None:
    """No invariant is claimed for this tier whose check was not seen to fire."""
    assert {invariant for invariant, _ in FIRES} == set(AT)
