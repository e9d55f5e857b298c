"""I1..I24 against the ledgers of market, boxes, person and disk; never the daemon's own word for it.

What each promises, and where the others are held, is in ../invariants.py. `CHECKED` says when this tier looks: on the
wire (wire.py), at every commit (here, and evidence.py), at a listing, at the end (ending.py), or by the sweep; and what
it takes for a violation.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.domain.lifecycle import MAIN_LINE, TERMINAL
from daemon.domain.plan import STARTS_BEFORE_HOLD
from remote_payload.contract import Done

from . import ending
from .box_disk import FILES, made, sha256
from .evidence import Evidence
from .loop import LIFE
from .spending import Spending
from .wire import Wire

if TYPE_CHECKING:
    from .loop import Life
    from .simulation import Simulation

CHECKED: dict[str, str] = {
    "I1": "wire: a destroy of a machine that worked, without a whole model here or its typed id",
    "I2": "commit: a receipt, or DOWNLOADED, without files that are a box's own and would outlast a power cut",
    "I3": "commit and listing: two LIVE leases or open creates of one job; a LOST machine that runs on",
    "I4": "end: a machine with our label that no lease knows",
    "I5": "commit and end: a job that ended while a machine of it that can be seen still bills",
    "I6": "wire: a create whose label is not in the database file, for the job that it names",
    "I7": "wire: a label sent twice",
    "I8": "commit: a state that went backwards without the person or a lost artifact",
    "I9": "end: events that do not yield the row",
    "I10": "commit: a cost that fell, and no charge says so; end: a lease that counts less than the market billed",
    "I11": "listing: a start only queued and left so; commit: a hold, the whole job or training that cost too much",
    "I12": "wire and commit: a life that was overtaken; start: a job of a restored database that is not held",
    "I13": "end: a key of an instance in the daemon's files",
    "I14": "wire: a nonce sent to two machines, a stage under two nonces in one attempt; work on another job's machine",
    "I15": "commit: a stage that is done here and not on any box, or failed here and not there",
    "I16": "commit: a machine GONE or LOST, a create ABSENT or REFUSED, by too little evidence",
    "I17": "commit: absences counted that no trusted listing showed",
    "I18": "wire: a request about a machine that is not ours, or that no operation of its own job asks for",
    "I19": "wire and commit: a cancel that was lost, or that ended with work and without a word",
    "I20": "death and end: a file under its own name that is not whole",
    "I22": "anything: a process that ends by a defect, a job held INTERNAL without a fault",
    "I23": "end: clear sky, and no end within three hours; a job that was accepted and is nowhere; listing: a machine "
    "that is not asked to end though its model is home and proven",
    "I24": "sweep",
}
HELD = """
    SELECT id, state, hold_reason, hold_detail, hold_by, (
        SELECT count(*) FROM events e WHERE e.job_id = j.id AND e.kind = 'job.held' AND e.by <> 'daemon'
    ) AS said FROM jobs j"""
KEPT = """
    SELECT instance_id FROM leases l JOIN jobs j ON l.job_id = j.id
    WHERE l.state = 'LIVE' AND j.state = 'VERIFIED' AND j.hold_reason IS NULL
    AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.lease_id = l.id AND o.kind = 'destroy')"""
PASSES, PASS_S = 4, 30.0  # until a machine must have been told to stop; between two passes of reconcile at most


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str
    at: float

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.2f}: {self.what}"


@dataclass(frozen=True)
class _ToStop:
    """A machine that must be stopped: since when listings show it, or show it again after a stop; how many of them."""

    since: float
    looks: int = 0


class Witness:
    """Looks at everything. Its own connection to the database reads only what is committed."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.violations: list[Violation] = []
        self.ledger: tuple[str, ...] = ()
        self.wire, self.evidence, self.spending = Wire(self), Evidence(self), Spending(self)
        self._known: dict[str, str] = {}  # state by job
        self._held: dict[str, tuple[str | None, int]] = {}  # by job: why, and how often its person has said so
        self._receipts = 0
        self._to_stop: dict[int, _ToStop] = {}  # by instance
        self._kept: dict[int, int] = {}  # listings in a row in which such a machine was not asked to end
        self._noted = 0  # newest event that must be noted: of the last request, or of the pass before the last
        self._listed = 0  # newest event when the last pass began
        self._forgot = False  # the database was put back and knows less than was noted beside it
        self._connection: sqlite3.Connection | None = None

    def accuse(self, invariant: str, what: str) -> None:
        if self.sim.over:
            return
        what = self.sim.scrub(what)
        if (invariant, what) not in {(v.invariant, v.what) for v in self.violations}:
            self.violations.append(Violation(invariant, what, self.sim.clock.boot() - 1000.0))
            self.sim.say("VIOLATED", f"{invariant}: {what}")

    # -- reading

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        if self._connection is None:
            path = self.sim.settings.paths.database
            self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
        return self._connection.execute(query, values).fetchall()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def names(self) -> dict[str, str]:
        return {row["id"]: row["name"] for row in self.rows("SELECT id, name FROM jobs")}

    def states(self) -> dict[str, str]:
        return {row["id"]: row["state"] for row in self.rows("SELECT id, state FROM jobs")}

    def holds(self) -> dict[str, str]:
        found = self.rows("SELECT id, hold_reason FROM jobs WHERE hold_reason IS NOT NULL")
        return {row["id"]: row["hold_reason"] for row in found}

    def held_instances(self, job: str) -> list[int]:
        found = self.rows("SELECT instance_id FROM leases WHERE job_id = ? AND state IN ('LIVE', 'LOST')", job)
        return [row["instance_id"] for row in found]

    def all_over(self) -> bool:
        states = self.states()
        return bool(states) and all(state in TERMINAL for state in states.values())

    def all_settled(self) -> bool:
        held = self.holds()
        return all(state in TERMINAL or job in held for job, state in self.states().items())

    def is_whole(self, folder: Path, job: str) -> bool:
        """It is the model that training makes of that job."""
        name = self.names().get(job, "")
        return all(self._is_true(folder / file, file, name) for file in FILES)

    def _is_true(self, path: Path, file: str, name: str) -> bool:
        return path.is_file() and sha256(path.read_bytes()) == sha256(made(name, file))

    def let_go(self, instance: int) -> bool:
        return instance in self.sim.person.written_off

    # -- at every trusted listing

    def listed(self, running: set[int], queued: dict[int, Life | None]) -> None:
        """What runs and is LOST, and what a start only queued, is stopped at once; some `PASSES` are forgiven.

        Where nobody lives who asked for the start, the patience with it comes first.
        """
        now = self.sim.loop.time()
        self._noted, self._listed = max(self._noted, self._listed), self.newest_event()
        lost = {row["instance_id"] for row in self.rows("SELECT instance_id FROM leases WHERE state = 'LOST'")}
        self._to_stop = {number: self._to_stop.get(number, _ToStop(now)) for number in lost & running | queued.keys()}
        for number, known in self._to_stop.items():
            self._to_stop[number] = replace(known, looks=known.looks + 1)
            knows = queued.get(number)
            heard = number not in queued or (knows is not None and not knows.dead)
            patience_s = PASSES * PASS_S + (0.0 if heard else self.sim.settings.timing.start_patience)
            if known.looks >= PASSES and now - known.since > patience_s:
                invariant, what = ("I11", "is queued for a start") if number in queued else ("I3", "is LOST and runs")
                self.accuse(invariant, f"{number} {what}, and was not stopped")

        self._kept = {row["instance_id"]: self._kept.get(row["instance_id"], 0) + 1 for row in self.rows(KEPT)}
        for number in (number for number, looks in self._kept.items() if looks > PASSES):
            self.accuse("I23", f"{number} is kept though its model is home and proven")

    def noted(self, what: str) -> None:
        """A request leaves: that it was sent is noted beside the database by now."""
        sent = self.rows("SELECT coalesce(max(id), 0) AS n FROM events WHERE kind = ?", f"{what}.sent")[0]["n"]
        self._noted = max(self._noted, sent)

    def told(self, instance: int) -> None:
        """It was asked to stop, or destroyed: whether that had an effect, the next listings show."""
        if instance in self._to_stop:
            self._to_stop[instance] = _ToStop(self.sim.loop.time())

    # -- at every commit

    def committed(self) -> None:
        for row in self.rows(HELD):
            job, state, reason = row["id"], row["state"], row["hold_reason"]
            was = self._known.get(job)
            if state != was:
                self._moved(job, was, state)
                self._known[job] = state
            before, held = self._held.get(job, (None, 0)), (reason, row["said"])
            if held != before:
                goes_on = bool(before[0] and reason) and row["hold_by"] == "daemon" and reason != "RESTORED"
                self._held[job] = held
                self.spending.held(job, reason, goes_on=goes_on)
                if reason == "INTERNAL":
                    self._internal(row["hold_detail"])
                if reason == "STAGE_FAILED":
                    self._failed(job)
        self._written_by_the_leader()
        self._receipts_true()
        self._one_machine()
        self._stages_true()
        self.evidence.committed()
        self.spending.look()

    def _moved(self, job: str, was: str | None, state: str) -> None:
        self.sim.say("job", self.sim.scrub(f"{job} {was} > {state}"))
        order = [str(s) for s in MAIN_LINE]
        if was in order and state in order and order.index(state) < order.index(was):
            lost = (was, state) == ("VERIFIED", "GGUF")
            if not lost and job not in self.sim.person.retried:
                self.accuse("I8", f"{was} > {state}")
        if (was, state) == ("GGUF", "DOWNLOADED"):
            self._here(job)
        if state in TERMINAL:
            for machine in self.sim.market.machines.values():
                seen = machine.is_listed(0.0)
                if machine.label and job in machine.label and machine.is_there and seen and not self.let_go(machine.id):
                    self.accuse("I5", f"{state} while {machine.id} still bills")
        if state == "CANCELLED" and job not in self.sim.person.typed:
            for disk in self.sim.boxes.disks.values():
                if disk.worked and disk.machine.job == job and not self._excused(disk.machine.id):
                    self.accuse("I19", "CANCELLED with work that was not verified, and nobody typed the id")

    def _excused(self, instance: int) -> bool:
        """Somebody else ended it, or it was written off: there is nothing left to lose here."""
        machine = self.sim.market.machines[instance]
        return not machine.is_there or not machine.is_listed(0.0) or self.let_go(instance)

    def _internal(self, detail: str) -> None:
        expected = ("[Errno", "MarketRefused", "preflight", "disk I/O", "full", "StoreError")
        if not any(text in detail for text in expected):
            self.accuse("I22", f"held INTERNAL: {detail[:200]}")

    def _failed(self, job: str) -> None:
        """Only the box can say that: in its failed.json, or by a runner that ends again and again."""
        disks = [disk for disk in self.sim.boxes.disks.values() if disk.machine.job == job]
        died = any(starts >= STARTS_BEFORE_HOLD for disk in disks for starts in disk.claimed.values())
        if not died and not any(disk.failed for disk in disks):
            self.accuse("I15", "held for a stage that failed, and none did")

    def _here(self, job: str) -> None:
        """Every file, whole and durable; in its final place if an earlier life came so far."""
        models = self.sim.settings.paths.models
        folders = [models / f".incoming-{job}", *models.glob(f"*/v*-{job}")]
        if not any(self.is_whole(folder, job) and self._is_durable(folder, FILES) for folder in folders):
            self.accuse("I2", "DOWNLOADED, and not every file is here, whole and durable")

    def _is_durable(self, folder: Path, files: Iterable[str]) -> bool:
        """A power cut at this moment would leave them there."""
        return all(self.sim.disk.is_durable(folder / file) for file in files)

    def _receipts_true(self) -> None:
        count = self._count_receipts()
        if count == self._receipts:
            return
        self._receipts = count
        for row in self.rows("SELECT job_id, folder, files FROM receipts ORDER BY id DESC LIMIT 1"):
            folder, files = Path(row["folder"]), [file["path"] for file in json.loads(row["files"])]
            for file in files:
                if not self._is_true(folder / file, file, self.names()[row["job_id"]]):
                    self.accuse("I2", f"a receipt for {file}, which is not what the box made")
            if not self._is_durable(folder, files):
                self.accuse("I2", "a receipt for files that a power cut would take back")

    def _count_receipts(self) -> int:
        return int(self.rows("SELECT count(*) AS n FROM receipts")[0]["n"])

    def _written_by_the_leader(self) -> None:
        life = LIFE.get()
        leads = max((row["epoch"] for row in self.rows("SELECT epoch FROM leader")), default=0)
        if life is not None and life.epoch is not None and life.epoch < leads:
            self.accuse("I12", f"{life} writes, which was overtaken")

    def _one_machine(self) -> None:
        for row in self.rows(
            "SELECT j.id, (SELECT count(*) FROM leases l WHERE l.job_id = j.id AND l.state = 'LIVE') + (SELECT count(*)"
            " FROM operations o WHERE o.job_id = j.id AND o.kind = 'create' AND o.state IN ('SENT', 'UNKNOWN')) AS n"
            " FROM jobs j"
        ):
            if row["n"] > 1:
                self.accuse("I3", f"{row['n']} machines or open creates")

    def _stages_true(self) -> None:
        disks = self.sim.boxes.disks.values()
        true = {(disk.machine.job, n) for disk in disks for n, e in disk.ends.items() if isinstance(e, Done)}
        for row in self.rows("SELECT job_id, stage, nonce FROM stages WHERE done_at IS NOT NULL"):
            if (row["job_id"], row["nonce"]) not in true:
                self.accuse("I15", f"{row['stage']} is done here, and on no box of its job")

    # -- now and then

    def leads(self) -> None:
        """A life has taken the lead: a database that was put back and has forgotten something holds every job."""
        forgot, self._forgot = self._forgot, False
        held = self.holds()
        for job, state in self.states().items():
            if forgot and state not in TERMINAL and held.get(job) != "RESTORED":
                self.accuse("I12", f"a restored database goes on: the job is {state} and held for {held.get(job)}")

    def after_death(self) -> None:
        self._files_whole()

    def after_restore(self) -> None:
        """What the daemon knew is not what it knows: states may be older now."""
        unsure = self.sim.sky.strokes["disk full"]  # how far it had come is noted in a file
        self._forgot = self.newest_event() < self._noted and not unsure
        self._noted = self._listed = 0
        self._known, self._held = self.states(), {}  # what an older database says now is not decided now
        self._receipts = self._count_receipts()  # they were judged when they were new
        self.evidence.forget()
        self.spending.forget()
        self.wire.forget()
        self.sim.person.is_forgotten(self.newest_event())

    def newest_event(self) -> int:
        return int(self.rows("SELECT coalesce(max(id), 0) AS n FROM events")[0]["n"])

    def _files_whole(self) -> None:
        for folder in self.sim.settings.paths.models.glob("*/v*"):
            for name in FILES:
                path = folder / name
                if path.exists() and not self._is_true(path, name, folder.parent.name):
                    self.accuse("I20", f"{name} lies under its own name and is not whole")

    def at_the_end(self) -> None:
        self._files_whole()
        ending.look(self)
        self.ledger = ending.ledger(self)
