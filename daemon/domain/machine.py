"""Executes the lifecycle table with `transitions`, as a validator of edges and guards.

Measured for transitions 0.9.3: its AsyncMachine cancels a callback that awaits when another trigger fires, and a rented
id is lost. Hence the plain Machine without automatic transitions or queue, guards that only read the facts they are
given, and no effects in callbacks. The truth is the database row; a machine is attached only while one trigger fires.
"""

from __future__ import annotations

from dataclasses import dataclass

from transitions import Machine, MachineError

from daemon.domain.lifecycle import EDGES, Guard, JobState, Trigger


@dataclass(frozen=True)
class Facts:
    """What the guards may look at."""

    has_sft: bool
    has_dpo: bool
    nothing_rented: bool
    has_receipt: bool

    def holds(self, guard: Guard) -> bool:
        return {
            Guard.HAS_SFT: self.has_sft,
            Guard.NO_SFT: not self.has_sft,
            Guard.HAS_DPO: self.has_dpo,
            Guard.NO_DPO: not self.has_dpo,
            Guard.NOTHING_RENTED: self.nothing_rented,
            Guard.RECEIPT: self.has_receipt,
        }[guard]


class IllegalTransition(Exception):
    """No edge of the table allows this; a defect in the caller, never retried."""


class _Model:
    state: str


def fire(state: JobState, trigger: Trigger, facts: Facts) -> JobState:
    """The state after `trigger`; raises IllegalTransition when no edge fits or its guards are false."""
    model = _Model()
    machine = Machine(
        model=None, states=[s.value for s in JobState], initial=state.value, auto_transitions=False, queued=False
    )
    for edge in EDGES:
        machine.add_transition(
            edge.trigger.value,
            edge.source.value,
            edge.target.value,
            conditions=[lambda guard=guard: facts.holds(guard) for guard in edge.guards],
        )
    machine.add_model(model, initial=state.value)
    try:
        moved = bool(getattr(model, trigger.value)())
    except MachineError as error:
        raise IllegalTransition(f"{trigger} is not possible in {state}") from error
    finally:
        machine.remove_model(model)
    if not moved:
        raise IllegalTransition(f"{trigger} in {state}: its guards do not hold ({facts})")
    return JobState(model.state)
