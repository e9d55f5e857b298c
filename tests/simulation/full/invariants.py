"""I1..I24 against the ledgers of market, boxes, person and disk; never the daemon's own word for it.

What each promises, and where the others are held, is in ../invariants.py. `CHECKED` says when this tier looks: on the
wire (a request leaves the daemon), at every commit, at the end, or by the sweep; and what it takes for a violation.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.domain.ids import LABEL_PREFIX
from daemon.domain.lifecycle import MAIN_LINE, TERMINAL
from daemon.market.permit import DestroyPermit
from daemon.store import events, jobs, leases
from daemon.store.database import Database
from remote_payload.contract import Done

from .box import FILES, made, sha256
from .loop import Life
from .market import CANARY, FOREIGN

if TYPE_CHECKING:
    from .simulation import Simulation

CHECKED: dict[str, str] = {
    "I1": "wire: a destroy of a machine that worked, without a whole model here or its typed id",
    "I2": "commit: a new receipt whose files are not the bytes that the boxes made",
    "I3": "commit and listing: two LIVE leases or open creates of one job; a LOST machine that runs on",
    "I4": "end: a machine with our label that no lease knows",
    "I5": "commit and end: a job that ended while a machine of it that can be seen still bills",
    "I6": "wire: a create whose label is not in the database file",
    "I7": "wire: a label sent twice",
    "I8": "commit: a state that went backwards without the person or a lost artifact",
    "I9": "end: events that do not yield the row",
    "I10": "end: a lease that counts less than the market billed",
    "I11": "listing: a start that was only queued and left so",
    "I12": "wire: a request of a life that was overtaken",
    "I13": "end: a key of an instance in the daemon's files",
    "I14": "wire: a nonce sent to two machines, or a stage of one attempt under two nonces",
    "I15": "commit: a stage that is done here and not on any box",
    "I16": "commit: a machine GONE, a create ABSENT or REFUSED, by too little evidence",
    "I17": "commit: absences counted that no trusted listing showed",
    "I18": "wire: a request about a machine that is not ours",
    "I19": "wire and commit: a cancel that was lost, or that ended with work and without a word",
    "I20": "death and end: a file under its own name that is not whole",
    "I22": "anything: a process that ends by a defect, a job held INTERNAL without a fault",
    "I23": "end: clear sky, and no end within three hours",
    "I24": "sweep",
}
GONE_SPAN_S = 30.0
PASSES, PASS_S = 4, 30.0  # until a machine must have been told to stop; between two passes of reconcile at most
ABSENT_LISTINGS, ABSENT_SPAN_S = 5, 600.0 - 30.0  # the interval in which it was sent counts whole


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str
    at: float

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.2f}: {self.what}"


@dataclass(frozen=True)
class _Absence:
    """How often a lease was missed, how many listings there were then, and when the first miss came."""

    count: int
    looks: int
    first_at: float


@dataclass(frozen=True)
class _Sent:
    """When a create was first seen to have left, in awake seconds, and how many listings there were then."""

    at: float
    looks: int
    judged: bool


@dataclass(frozen=True)
class _ToStop:
    """A machine that must be stopped: since when listings show it, how many of them, and whether it was told."""

    since: float
    looks: int = 0
    told: bool = False


def known_first(known: _Absence | None, now: float) -> float:
    return known.first_at if known is not None else now


class Witness:
    """Looks at everything. Its own connection to the database reads only what is committed."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.violations: list[Violation] = []
        self.ledger: tuple[str, ...] = ()
        self._known: dict[str, str] = {}  # state by job
        self._receipts = 0
        self._gone: set[int] = set()
        self._absences: dict[int, _Absence] = {}
        self._sent: dict[str, _Sent] = {}  # creates, by label: a backup keeps what was seen before it
        self._to_stop: dict[int, _ToStop] = {}  # by instance
        self._started: dict[str, int] = {}  # the machine, by nonce
        self._nonces: dict[tuple[str, int, str], str] = {}  # by job, attempt and stage
        self._connection: sqlite3.Connection | None = None

    def accuse(self, invariant: str, what: str) -> None:
        if self.sim.over:
            return
        what = self.sim.scrub(what)
        if (invariant, what) not in {(v.invariant, v.what) for v in self.violations}:
            self.violations.append(Violation(invariant, what, self.sim.clock.boot() - 1000.0))
            self.sim.say("VIOLATED", f"{invariant}: {what}")

    # -- reading

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        if self._connection is None:
            path = self.sim.settings.paths.database
            self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
        return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def states(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in self._rows("SELECT id, state FROM jobs")}

    def holds(self) -> dict[str, str]:
        found = self._rows("SELECT id, hold_reason FROM jobs WHERE hold_reason IS NOT NULL")
        return {row["id"]: row["hold_reason"] for row in found}

    def held_instances(self, job: str) -> list[int]:
        found = self._rows("SELECT instance_id FROM leases WHERE job_id = ? AND state IN ('LIVE', 'LOST')", job)
        return [row["instance_id"] for row in found]

    def all_over(self) -> bool:
        states = self.states()
        return bool(states) and all(state in TERMINAL for state in states.values())

    def all_settled(self) -> bool:
        held = self.holds()
        return all(state in TERMINAL or job in held for job, state in self.states().items())

    # -- on the wire

    def on_the_wire(
        self, what: str, instance: int, life: Life | None, *, label: str = "", nonce: str = "",
        permit: DestroyPermit | None = None,
    ) -> None:  # fmt: skip
        newest = max((other.epoch or 0 for other in self.sim.lives), default=0)
        if life is not None and (life.epoch or 0) < newest:
            self.accuse("I12", f"{what} of {instance} by {life}, which was overtaken")
        if instance in FOREIGN:
            self.accuse("I18", f"{what} of {instance}, which is not ours")
        if what == "create":
            if self.sim.market.creates.get(label):
                self.accuse("I7", "a label was sent twice")
            if not self._rows("SELECT 1 FROM operations WHERE label = ? AND state = 'SENT'", label):
                self.accuse("I6", "a create without a committed intent")
        if what in ("create", "stage_start") and self.sim.person.cancelled:
            self.accuse("I19", f"{what} after the job was cancelled")
        if what in ("stop", "destroy") and (known := self._to_stop.get(instance)) is not None:
            self._to_stop[instance] = replace(known, told=True)
        if what == "stage_start":
            self._starts_once(nonce, instance)
        if what == "destroy":
            self._may_destroy(instance)

    def _starts_once(self, nonce: str, instance: int) -> None:
        first = self._started.setdefault(nonce, instance)
        if first != instance and not isinstance(self.sim.boxes.box(first).ends.get(nonce), Done):
            self.accuse("I14", f"{nonce} is started on {instance} and was on {first}")
        for row in self._rows("SELECT job_id, attempt, stage FROM stages WHERE nonce = ?", nonce):
            if self._nonces.setdefault(tuple(row), nonce) != nonce:
                self.accuse("I14", f"{row['stage']} of attempt {row['attempt']} is started under two nonces")

    def _may_destroy(self, instance: int) -> None:
        disk = self.sim.boxes.disks.get(instance)
        if disk is None or not disk.worked or instance in self.sim.person.typed:
            return
        if not any(self._is_whole(folder) for folder in self.sim.settings.paths.models.glob("*/v*")):
            self.accuse("I1", f"destroy of {instance}, which may hold the only copy")

    def _is_whole(self, folder: Path) -> bool:
        return all(self._is_true(folder / name, name) for name in FILES)

    def _is_true(self, path: Path, name: str) -> bool:
        return path.is_file() and sha256(path.read_bytes()) == sha256(made("tiny", name))

    # -- at every trusted listing

    def listed(self, running: set[int], queued: set[int]) -> None:
        """What runs and is LOST, and what a start only queued, is stopped at once; some `PASSES` are forgiven."""
        now = self.sim.loop.time()
        lost = {row["instance_id"] for row in self._rows("SELECT instance_id FROM leases WHERE state = 'LOST'")}
        self._to_stop = {number: self._to_stop.get(number, _ToStop(now)) for number in lost & running | queued}
        for number, known in self._to_stop.items():
            self._to_stop[number] = replace(known, looks=known.looks + 1)
            if not known.told and known.looks >= PASSES and now - known.since > PASSES * PASS_S:
                invariant, what = ("I11", "is queued for a start") if number in queued else ("I3", "is LOST and runs")
                self.accuse(invariant, f"{number} {what}, and was not stopped")

    # -- at every commit

    def committed(self) -> None:
        for row in self._rows("SELECT id, state, hold_reason, hold_detail FROM jobs"):
            was, state = self._known.get(row["id"]), row["state"]
            if state != was:
                self._moved(row["id"], was, state)
                self._known[row["id"]] = state
            if row["hold_reason"] == "INTERNAL":
                self._internal(row["hold_detail"])
        self._receipts_true()
        self._one_machine()
        self._stages_true()
        self._gone_by_evidence()
        self._absent_by_evidence()
        self._refused_by_the_market()

    def _moved(self, job: str, was: str | None, state: str) -> None:
        self.sim.say("job", f"{was} > {state}")
        order = [str(s) for s in MAIN_LINE]
        if was in order and state in order and order.index(state) < order.index(was):
            lost = (was, state) == ("VERIFIED", "GGUF")
            if not lost and not self.sim.person.retried:
                self.accuse("I8", f"{was} > {state}")
        if state in TERMINAL:
            for machine in self.sim.market.machines.values():
                seen = machine.is_listed(0.0)
                if (
                    machine.label
                    and job in machine.label
                    and machine.is_there
                    and seen
                    and not self._let_go(machine.id)
                ):
                    self.accuse("I5", f"{state} while {machine.id} still bills")
        if state == "CANCELLED" and not self.sim.person.typed:
            for disk in self.sim.boxes.disks.values():
                if disk.worked and disk.job is not None and disk.job.job == job and not self._excused(disk.machine.id):
                    self.accuse("I19", "CANCELLED with work that was not verified, and nobody typed the id")

    def _let_go(self, instance: int) -> bool:
        return instance in self.sim.person.written_off

    def _excused(self, instance: int) -> bool:
        """Somebody else ended it, or it was written off: there is nothing left to lose here."""
        machine = self.sim.market.machines[instance]
        return not machine.is_there or not machine.is_listed(0.0) or self._let_go(instance)

    def _internal(self, detail: str) -> None:
        expected = ("[Errno", "MarketRefused", "preflight", "disk I/O", "full", "StoreError")
        if not any(text in detail for text in expected):
            self.accuse("I22", f"held INTERNAL: {detail[:200]}")

    def _receipts_true(self) -> None:
        count = self._rows("SELECT count(*) AS n FROM receipts")[0]["n"]
        if count == self._receipts:
            return
        self._receipts = count
        for row in self._rows("SELECT folder, files FROM receipts ORDER BY id DESC LIMIT 1"):
            for file in json.loads(row["files"]):
                if not self._is_true(Path(row["folder"]) / file["path"], file["path"]):
                    self.accuse("I2", f"a receipt for {file['path']}, which is not what the box made")

    def _one_machine(self) -> None:
        for row in self._rows(
            "SELECT j.id, (SELECT count(*) FROM leases l WHERE l.job_id = j.id AND l.state = 'LIVE') + (SELECT count(*)"
            " FROM operations o WHERE o.job_id = j.id AND o.kind = 'create' AND o.state IN ('SENT', 'UNKNOWN')) AS n"
            " FROM jobs j"
        ):
            if row["n"] > 1:
                self.accuse("I3", f"{row['n']} machines or open creates")

    def _stages_true(self) -> None:
        true = {n for disk in self.sim.boxes.disks.values() for n, e in disk.ends.items() if isinstance(e, Done)}
        for row in self._rows("SELECT stage, nonce FROM stages WHERE done_at IS NOT NULL"):
            if row["nonce"] not in true:
                self.accuse("I15", f"{row['stage']} is done here, and on no box")

    def _gone_by_evidence(self) -> None:
        """Absences follow trusted listings, and GONE follows two of them, by the world's own clock."""
        now, looks = self.sim.clock.boot(), len(self.sim.market.given)
        for row in self._rows("SELECT instance_id, state, absent_count FROM leases"):
            number, gone, count = row["instance_id"], row["state"] == "GONE", row["absent_count"]
            known = self._absences.get(number)
            if known is None and gone:
                self._gone.add(number)  # an older database says so
            if known is None or count == 0:
                self._absences[number] = _Absence(count, max(0, looks - 2), now)  # the last may not be applied yet
            elif count > known.count:
                since = self.sim.market.given[known.looks :]
                if not any(given.trusted and number not in given.shown for given in since):
                    self.accuse("I17", f"{number}: an absence that no trusted listing showed")
                self._absences[number] = _Absence(count, looks, now if known.count == 0 else known.first_at)
            if gone and number not in self._gone and count >= 2 and now - known_first(known, now) < GONE_SPAN_S - 2:
                self.accuse("I16", f"{number} is GONE {now - known_first(known, now):.0f} s after it was first missed")
            if gone and number not in self._gone and self.sim.market.machines[number].is_shown:
                self.accuse("I16", f"{number} is GONE, and the market shows it to who asks by its id")
            (self._gone.add if gone else self._gone.discard)(number)

    def _refused_by_the_market(self) -> None:
        for row in self._rows("SELECT label FROM operations WHERE kind = 'create' AND state = 'REFUSED'"):
            if row["label"] not in self.sim.market.refused:
                self.accuse("I16", "a create is REFUSED, and nobody refused it")

    def _absent_by_evidence(self) -> None:
        """A create that may have left is ABSENT after 5 trusted listings and 600 s awake since then."""
        now, looks = self.sim.loop.time(), len(self.sim.market.given)
        for row in self._rows("SELECT label, state FROM operations WHERE kind = 'create' AND sent_at > 0"):
            known = self._sent.get(row["label"])
            if known is None:
                self._sent[row["label"]] = _Sent(now, looks, row["state"] == "ABSENT")
            elif row["state"] == "ABSENT" and not known.judged:
                self._sent[row["label"]] = replace(known, judged=True)
                trusted = sum(given.trusted for given in self.sim.market.given[known.looks :])
                if trusted < ABSENT_LISTINGS or now - known.at < ABSENT_SPAN_S:
                    self.accuse("I16", f"a create is ABSENT after {trusted} listings and {now - known.at:.0f} s")

    # -- now and then

    def after_death(self) -> None:
        self._files_whole()

    def after_restore(self) -> None:
        """What the daemon knew is not what it knows: states may be older now."""
        self._known = {}
        self._receipts = -1
        self._gone.clear()
        self._absences.clear()
        self._nonces.clear()

    def _files_whole(self) -> None:
        for folder in self.sim.settings.paths.models.glob("*/v*"):
            for name in FILES:
                path = folder / name
                if path.exists() and not self._is_true(path, name):
                    self.accuse("I20", f"{name} lies under its own name and is not whole")

    def at_the_end(self) -> None:
        self._files_whole()
        self._no_machine_forgotten()
        self._replayed()
        self._costs_at_the_end()
        self._no_canary()
        if any("exception" in c for c in self.sim.loop.complaints):
            error = next(c["exception"] for c in self.sim.loop.complaints if "exception" in c)
            if isinstance(error, Exception):
                self.accuse("I22", f"nobody heard of {type(error).__name__}: {error}")
        self.ledger = self._ledger()

    def _ledger(self) -> tuple[str, ...]:
        """What must be equal whatever happened on the way (I24): jobs, machines, files."""
        left = [m.id for m in self.sim.market.machines.values() if m.id >= 1000 and m.is_there]
        files = sorted(
            f"{path.name} {sha256(path.read_bytes())}"
            for path in self.sim.settings.paths.models.rglob("*")
            if path.suffix in (".gguf", ".safetensors") and path.parent.name.startswith(("v", "adapter"))
        )
        return (*sorted(self.states().values()), f"left: {left}", *files)

    def _no_machine_forgotten(self) -> None:
        known = {row["instance_id"]: row["state"] for row in self._rows("SELECT instance_id, state FROM leases")}
        over = self.states()
        for machine in self.sim.market.machines.values():
            if machine.id < 1000 or not machine.is_there:
                continue
            if machine.id not in known and (machine.label or "").startswith(f"{LABEL_PREFIX}-"):
                self.accuse("I4", f"{machine.id} bills and is in no lease")
            elif known.get(machine.id) == "GONE":
                self.accuse("I5", f"{machine.id} is GONE here, and bills")
            elif machine.runs and not self._let_go(machine.id) and self._owner_over(machine.id, over):
                self.accuse("I5", f"{machine.id} runs after its job ended")

    def _owner_over(self, instance: int, states: dict[str, str]) -> bool:
        for row in self._rows("SELECT job_id FROM leases WHERE instance_id = ?", instance):
            return row["job_id"] is not None and states[row["job_id"]] in TERMINAL
        return False

    def _replayed(self) -> None:
        database = Database(self.sim.settings.paths.database)
        try:
            with database.read() as c:
                for job in self.states():
                    row, found = jobs.get(c, job), events.replay(c, job)
                    true: dict[str, Any] = {"state": row.state, "hold": row.hold_reason, "attempt": row.attempt}
                    if found != true:
                        self.accuse("I9", f"events say {found}, the row says {true}")
        finally:
            database.close()

    def _costs_at_the_end(self) -> None:
        """Known intervals: from the lease's beginning to its last sight."""
        if any(self.sim.sky.strokes[name] for name in ("wall step", "restored")):
            return
        database = Database(self.sim.settings.paths.database)
        try:
            with database.read() as c:
                for job in self.states():
                    for lease in leases.of_job(c, job):
                        machine = self.sim.market.machines[lease.instance_id]
                        counted = lease.cost_at(self.sim.clock.wall_ms()) + 20_000
                        if not machine.is_there and counted < machine.billed() * 0.99:
                            self.accuse("I10", f"{machine.id}: counted {counted}, billed {round(machine.billed())}")
        finally:
            database.close()

    def _no_canary(self) -> None:
        for path in sorted(self.sim.root.rglob("*")):
            if path.is_file() and CANARY.encode() in path.read_bytes():
                self.accuse("I13", f"the key of an instance lies in {path.name}")
