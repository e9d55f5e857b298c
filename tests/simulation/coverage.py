"""The cells of the decision tier: state x fault x boundary, and the rules that take impossible ones out.

States come from the lifecycle table, faults from the fault table, boundaries from the kinds of actions that `plan` can
ask for, before and after their effect. A cell is impossible only by a rule below, with its reason; what was merely not
reached stays in the count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from daemon.domain import actions
from daemon.domain.lifecycle import JobState
from tests.simulation.decision.faults import FAULTS

BEFORE, AFTER = "before", "after"


class Cell(NamedTuple):
    state: str
    fault: str
    action: str
    side: str


KINDS = tuple(kind.__name__ for kind in actions.Action.__subclasses__())
STATES = tuple(state for state in JobState if not state.is_terminal)
S = JobState
BOX_CALLS = ("Prove", "Provision", "StartStage", "Watch", "StopStages", "FetchManifest", "Download", "Save")
CALLS = {"a create": "Rent", "a start": "StartMachine", "a stop": "StopMachine", "a destroy": "Destroy"}
ON_A_MACHINE = (*BOX_CALLS, "Wait", "Verify", "StartMachine", "StopMachine", "MarkLost")


@dataclass(frozen=True)
class Rule:
    """`holds(state, action, side)`: no run can stand there."""

    reason: str
    holds: Callable[[JobState, str, str], bool]


BOUNDARY_RULES: tuple[Rule, ...] = (
    Rule("waiting has no effect", lambda s, a, side: a == "Wait" and side == AFTER),
    Rule(
        "a stage is started only once the job is PROVISIONED",
        lambda s, a, side: a == "StartStage" and s in (S.QUEUED, S.DOWNLOADED, S.VERIFIED),
    ),
    Rule(
        "the manifest exists when the last stage, which makes the state GGUF, is done",
        lambda s, a, side: a in ("FetchManifest", "Download") and s is not S.GGUF,
    ),
    Rule("what is verified is what was downloaded", lambda s, a, side: a == "Verify" and s is not S.DOWNLOADED),
    Rule(
        "once every file is here no machine is needed: none is rented, made ready, started or given up",
        lambda s, a, side: (
            s in (S.DOWNLOADED, S.VERIFIED)
            and a in ("Rent", "Prove", "Provision", "StartMachine", "MarkLost", "Watch", "StopStages")
        ),
    ),
    Rule(
        "limits stop training; in GGUF nothing trains, and an earlier attempt is stopped in QUEUED",
        lambda s, a, side: a == "StopStages" and s is S.GGUF,
    ),
    Rule(
        "an earlier attempt's runner is stopped in QUEUED, before the machine is provisioned again",
        lambda s, a, side: a == "StopStages" and s is S.PROVISIONED,
    ),
)

GONE = "a job that ends has no machine left"


@cache
def impossible(state: JobState, action: str, side: str) -> str | None:
    """Why no run can stand at this boundary in this state; None when it can."""
    return next((rule.reason for rule in BOUNDARY_RULES if rule.holds(state, action, side)), None)


@cache
def needs_met(need: str, action: str, side: str) -> bool:
    """Whether what a fault needs can be there at the boundary."""
    if need == "nothing":
        return True
    if need == "a machine at the market":
        return (
            action in ON_A_MACHINE or (action == "Rent" and side == AFTER) or (action == "Destroy" and side == BEFORE)
        )
    if need == "a verified model on this disk":
        return action == "Destroy" and side == BEFORE
    if side != BEFORE:
        return False  # an answer is spoilt before it comes
    for call, kind in CALLS.items():
        if need.startswith(call):
            return action == kind
    return {
        "a call to the box about to be made": action in BOX_CALLS,
        "a box about to be prepared": action == "Provision",
        "a look about to be taken": action == "Watch",
        "bytes about to be fetched": action in ("FetchManifest", "Download", "Save"),
        "a model about to be proven": action == "Verify",
    }[need]


FAULT_RULES: tuple[Rule, ...] = (
    Rule("a verified model can be lost only where it was verified", 
         lambda s, a, f: f == "the model is deleted here" and s is not S.VERIFIED),
)  # fmt: skip


@cache
def cells() -> tuple[Cell, ...]:
    """Every cell that no rule excludes, in a fixed order."""
    return tuple(
        Cell(state, fault.name, action, side)
        for state in STATES
        for action in KINDS
        for side in (BEFORE, AFTER)
        if impossible(state, action, side) is None
        for fault in FAULTS
        if needs_met(fault.need, action, side)
        and not any(rule.holds(state, action, fault.name) for rule in FAULT_RULES)
    )


def aim_of(seed: int) -> Cell | None:
    """Every fifth seed is left to chance; the others go through the cells in a scattered order."""
    if seed % 5 == 4:
        return None
    table = cells()
    return table[(seed * 7919) % len(table)]


def report(reached: set[Cell], table: tuple[Cell, ...], *, everything: bool = False) -> str:
    """Reached and all cells by state, and what is missing, by boundary (or each cell)."""
    lines = ["state        reached / possible"]
    for state in STATES:
        of_state = [cell for cell in table if cell.state == state]
        lines.append(f"{state:12} {sum(cell in reached for cell in of_state):7} / {len(of_state)}")
    missing = [cell for cell in table if cell not in reached]
    done = len(table) - len(missing)
    lines.append(f"{'all':12} {done:7} / {len(table)}   {100 * done / len(table):.1f} %")
    counts: dict[str, int] = {}
    for cell in missing:
        name = " | ".join(cell) if everything else f"{cell.state} {cell.action} {cell.side}"
        counts[name] = counts.get(name, 0) + 1
    lines += [f"missing: {name}" + (f" ({n} faults)" if n > 1 else "") for name, n in counts.items()]
    return "\n".join(lines)
