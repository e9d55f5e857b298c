"""One bug to plant: a mistake, and the edits that make it."""

from __future__ import annotations

from dataclasses import dataclass

PLAN, EVIDENCE, HOLDS, RECORDS, SNAPSHOT, BILLING = (
    f"daemon/domain/{name}.py" for name in ("plan", "evidence", "holds", "records", "snapshot", "billing")
)
OPERATE, RECONCILE, ACT_MACHINE, PERMITS, DRIVER, WATCH, ATTEMPTS, COMMANDS, HOMECOMING, TAKEN = (
    f"daemon/control/{name}.py"
    for name in (
        "operate", "reconcile", "act_machine", "permits", "driver", "watch", "attempts", "commands", "homecoming",
        "snapshot",
    )
)  # fmt: skip
ARTIFACTS, CLOCK_STEP, DATABASE = (f"daemon/store/{name}.py" for name in ("artifacts", "clock_step", "database"))
FIRST_SCHEMA = "migrations/versions/0001_first.py"
FOLDER = "daemon/artifacts/folder.py"


@dataclass(frozen=True)
class Edit:
    """In `file`, the one place where `old` stands becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """`families` of reference faults it belongs to; `tier` is the simulator that has to catch it."""

    name: str
    families: str
    mistake: str
    tier: str
    edits: tuple[Edit, ...]


def mutant(name: str, families: str, tier: str, mistake: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, families, mistake, tier, tuple(Edit(*edit) for edit in edits))
