"""The cells of this tier: state x fault x boundary, which of them no run can reach and why, and the road to a cell.

States come from the lifecycle table, faults from the fault table. Boundaries are the calls of the ports of market, box
and proof, and `commit` and `file` for all of their kind. What no rule excludes and was not reached stays in the count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from daemon.domain.lifecycle import JobState as S

from .faults import EVENTS, FAULTS

STATES = tuple(state for state in S if not state.is_terminal)
CHANGES = ("market create", "market start", "market stop", "market destroy")
READS = ("market search", "market show", "market charges", "market attach_key")
PREPARING = tuple(
    f"box {call}" for call in ("prove", "upload_payload", "bootstrap", "preflight", "upload", "write_job", "prepare")
)
WATCHING = tuple(f"box {call}" for call in ("status", "read events", "read log", "stage_end"))
HOMECOMING = ("box manifest", "box download", "box block")
BOX = (*PREPARING, "box start_stage", *WATCHING, "box stop_stages", *HOMECOMING, "box fetch_folder", "box keep")
BOUNDARIES = ("market listing", *READS, *CHANGES, *BOX, "verify", "commit", "file")
RENTING = ("market search", "market create", "market attach_key", *PREPARING)

# Faults that strike within a call, and the calls; the others strike at any boundary.
WITHIN: dict[str, tuple[str, ...]] = {
    **{name: ("market create",) for name in FAULTS if name.startswith("create ")},
    "other price": ("market create",),
    "charge late": ("market create",),
    "rate limited": (*READS, *CHANGES),
    "key refused": (*READS, *CHANGES),
    "listing untrusted": ("market listing",),
    "listing behind": ("market listing",),
    **{name: ("market destroy",) for name in FAULTS if name.startswith("destroy ")},
    "stop lost": ("market start", "market stop"),
    "start queued": ("market start",),
    **{name: tuple(b for b in BOX if b != "box block") for name in ("link lost before", "link lost after")},
    "half open": tuple(b for b in BOX if b != "box block"),
    "login refused": BOX,
    "preflight fails": ("box preflight",),
    "data refused": ("box prepare",),
    "wrong counts": ("box prepare",),
    "hostile log": ("box read events", "box read log"),
    "forged done": ("box stage_end",),
    "forged manifest": ("box manifest",),
    "download cut": ("box block",),
    "bit flip": ("box block",),
    "wrong model": ("verify",),
    "disk full": ("file",),
    "store fails": ("commit",),
    "commit unsure": ("commit",),
    "stage fails": (),  # when a stage's time is over, at no boundary of the daemon
}
OF_A_MACHINE = frozenset(EVENTS) - {
    "sleep", "wall step", "power cut", "second daemon", "restored", "person", "credit gone", "model deleted",
}  # fmt: skip


class Cell(NamedTuple):
    state: str
    fault: str
    boundary: str


@dataclass(frozen=True)
class Rule:
    """`holds(state, fault, boundary)`: no run of this tier can stand there."""

    reason: str
    holds: Callable[[S, str, str], bool]


RULES: tuple[Rule, ...] = (
    Rule(
        "once every file is here no machine is needed: none is rented, prepared, started or watched",
        lambda s, f, b: (
            s in (S.DOWNLOADED, S.VERIFIED)
            and b in (*RENTING, *WATCHING, "market start", "box start_stage", "box stop_stages")
        ),
    ),
    Rule("a stage is started once the job is PROVISIONED", lambda s, f, b: b == "box start_stage" and s is S.QUEUED),
    Rule("what comes home is what the last stage made", lambda s, f, b: b in HOMECOMING and s is not S.GGUF),
    Rule("what is proven is what was downloaded", lambda s, f, b: b == "verify" and s is not S.DOWNLOADED),
    Rule(
        "a stage that runs is stopped for a new attempt, or where training has spent its share",
        lambda s, f, b: b == "box stop_stages" and s not in (S.QUEUED, S.SFT, S.DPO),
    ),
    Rule(
        "before the first create there is no machine",
        lambda s, f, b: f in OF_A_MACHINE and s is S.QUEUED and b in ("market search", "market create"),
    ),
    Rule(
        "this tier's job lets its machine go without a question: no hold stops it in VERIFIED",
        lambda s, f, b: s is S.VERIFIED and b == "market stop",
    ),
    Rule(
        "once every file is here there is nothing to save",
        lambda s, f, b: s in (S.DOWNLOADED, S.VERIFIED) and b == "box fetch_folder",
    ),
    Rule("a checkpoint is fetched while a stage trains", lambda s, f, b: b == "box keep" and s not in (S.SFT, S.DPO)),
    Rule(
        "what a machine cost is asked once it is gone",
        lambda s, f, b: f in OF_A_MACHINE and b == "market charges",
    ),
    Rule("a verified model lies where it was verified", lambda s, f, b: f == "model deleted" and s is not S.VERIFIED),
)


@cache
def cells() -> tuple[Cell, ...]:
    """Every cell that no rule excludes, in a fixed order."""
    return tuple(
        Cell(state, fault, boundary)
        for state in STATES
        for boundary in BOUNDARIES
        for fault in FAULTS
        if boundary in WITHIN.get(fault, BOUNDARIES) and not any(r.holds(state, fault, boundary) for r in RULES)
    )


@dataclass(frozen=True)
class Strike:
    """`fault` at the first such boundary in such a state."""

    fault: str
    state: str
    boundary: str


# Where a fault that prepares another one strikes, by state.
STANDS_AT = {
    S.QUEUED: "box prepare", S.PROVISIONED: "box start_stage", S.SFT: "box status", S.DPO: "box status",
    S.GGUF: "box status", S.DOWNLOADED: "commit", S.VERIFIED: "market destroy",
}  # fmt: skip


def road(aim: Cell) -> list[Strike]:
    """What brings a job to the boundary in that state, and at last the fault itself."""
    state = S(aim.state)

    def there(fault: str) -> list[Strike]:
        return [Strike(fault, state, STANDS_AT[state])]

    again = [Strike("says retry", S.SFT, "box status")]
    way: list[Strike] = []
    match aim.boundary:
        case boundary if boundary in RENTING and state is not S.QUEUED:
            way = there("host lost")
        case boundary if boundary in WATCHING and state is S.QUEUED:
            way = [*again, Strike("says hold", S.QUEUED, "box prepare")]
        case boundary if boundary in WATCHING and state is S.PROVISIONED:
            way = there("says hold")
        case "box stop_stages":
            way = again if state is S.QUEUED else there("dear")
        case "box fetch_folder" if state in (S.QUEUED, S.PROVISIONED):
            way = [*again, *there("says hold")]
        case "box fetch_folder" if state not in (S.SFT, S.DPO):
            way = there("says hold")
        case "market start":
            way = there("host stops")
        case "market stop":
            way = there("says hold")
        case "market destroy" | "market charges" if state is not S.VERIFIED:
            way = there("says abandon")
        case "market show" if state is not S.VERIFIED:
            way = there("out of sight")
        case "market attach_key":
            way = there("login refused")
        case "market listing" | "file" if state is S.PROVISIONED:
            way = there("box silent")
        case "market listing" if state is S.DOWNLOADED:
            way = there("says hold")
        case boundary if boundary != "market destroy" and state is S.VERIFIED and aim.fault in OF_A_MACHINE:
            way = there("destroy lost before")
    return [*way, Strike(aim.fault, aim.state, aim.boundary)]


def report(reached: set[Cell], *, everything: bool = False) -> str:
    """Reached and possible cells by state, and what is missing, by state and boundary (or each cell)."""
    lines = ["state        reached / possible"]
    for state in STATES:
        of_state = [cell for cell in cells() if cell.state == state]
        lines.append(f"{state:12} {sum(cell in reached for cell in of_state):7} / {len(of_state)}")
    missing = [cell for cell in cells() if cell not in reached]
    done = len(cells()) - len(missing)
    lines.append(f"{'all':12} {done:7} / {len(cells())}   {100 * done / len(cells()):.1f} %")
    counts: dict[str, int] = {}
    for cell in missing:
        name = " | ".join(cell) if everything else f"{cell.state} {cell.boundary}"
        counts[name] = counts.get(name, 0) + 1
    return "\n".join([*lines, *(f"missing: {name} ({n})" for name, n in counts.items())])
