"""The last look: what is left at the market, what the events say, what was counted, and the ledger of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daemon.domain.ids import LABEL_PREFIX
from daemon.domain.lifecycle import TERMINAL
from daemon.store import events, jobs, leases
from daemon.store.database import Database

from .box_disk import sha256
from .market import CANARY

if TYPE_CHECKING:
    from .invariants import Witness

PASS_S = 60.0  # by how much the clock was set back is known from the last pass, and one may have failed


def look(w: Witness) -> None:
    """I4, I5, I9, I10, I13, I23 for a job that is forgotten, and I22 for what nobody heard of."""
    if not w.sim.jobs.items() <= w.names().items() and not w.sim.sky.strokes["restored"]:
        w.accuse("I23", "a job that was accepted is in no database, or under another name")
    _no_machine_forgotten(w)
    _replayed(w)
    _costs(w)
    _no_canary(w)
    for complaint in w.sim.loop.complaints:
        error = complaint.get("exception")
        if isinstance(error, Exception):
            w.accuse("I22", f"nobody heard of {type(error).__name__}: {error}")
            break


def ledger(w: Witness) -> tuple[str, ...]:
    """What must be equal whatever happened on the way (I24): jobs, machines, files."""
    left = [m.id for m in w.sim.market.machines.values() if m.id >= 1000 and m.is_there]
    models = w.sim.settings.paths.models
    files = sorted(
        f"{path.relative_to(models).parts[0]} {path.name} {sha256(path.read_bytes())}"
        for path in models.rglob("*")
        if path.suffix in (".gguf", ".safetensors") and path.parent.name.startswith(("v", "adapter"))
    )
    return (*sorted(w.states().values()), f"left: {left}", *files)


def _no_machine_forgotten(w: Witness) -> None:
    known = {row["instance_id"]: row["state"] for row in w.rows("SELECT instance_id, state FROM leases")}
    over = w.states()
    for machine in w.sim.market.machines.values():
        if machine.id < 1000 or not machine.is_there:
            continue
        if machine.id not in known and (machine.label or "").startswith(f"{LABEL_PREFIX}-"):
            w.accuse("I4", f"{machine.id} bills and is in no lease")
        elif known.get(machine.id) == "GONE":
            w.accuse("I5", f"{machine.id} is GONE here, and bills")
        elif machine.runs and not w.let_go(machine.id) and _owner_over(w, machine.id, over):
            w.accuse("I5", f"{machine.id} runs after its job ended")


def _owner_over(w: Witness, instance: int, states: dict[str, str]) -> bool:
    for row in w.rows("SELECT job_id FROM leases WHERE instance_id = ?", instance):
        return row["job_id"] is not None and states[row["job_id"]] in TERMINAL
    return False


def _replayed(w: Witness) -> None:
    database = Database(w.sim.settings.paths.database)
    try:
        with database.read() as c:
            for job in w.states():
                row, found = jobs.get(c, job), events.replay(c, job)
                true: dict[str, Any] = {"state": row.state, "hold": row.hold_reason, "attempt": row.attempt}
                if found != true:
                    w.accuse("I9", f"events say {found}, the row says {true}")
    finally:
        database.close()


def _costs(w: Witness) -> None:
    """Known intervals: from the lease's beginning to its last sight."""
    if w.sim.sky.strokes["restored"]:
        return
    unseen_s = w.sim.clock.set_backs * PASS_S
    database = Database(w.sim.settings.paths.database)
    try:
        with database.read() as c:
            for job in w.states():
                for lease in leases.of_job(c, job):
                    machine = w.sim.market.machines[lease.instance_id]
                    counted = lease.cost_at(w.sim.clock.wall_ms()) + 20_000 + machine.price * unseen_s / 3600
                    billed = w.evidence.billed_when_gone.get(machine.id, machine.billed())
                    if not machine.is_there and counted < billed * 0.99:
                        w.accuse("I10", f"{machine.id}: counted {counted}, billed {round(billed)}")
    finally:
        database.close()


def _no_canary(w: Witness) -> None:
    for path in sorted(w.sim.root.rglob("*")):
        if path.is_file() and CANARY.encode() in path.read_bytes():
            w.accuse("I13", f"the key of an instance lies in {path.name}")
