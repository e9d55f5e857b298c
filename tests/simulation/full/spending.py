"""What a hold and the whole job cost by the market's ledger, against the limits of its spec: I11. And I10: what was
counted stays counted.

Looked at with every commit. Beyond the work is what a machine bills with nothing running on it. Forgiven is what
nobody can know in time: two passes, the one that was under way and the next; and of the whole job what was billed
before its machine was known, while it was gone for all to see, asleep, while the key was another account's, or in a
hold, which has a limit of its own. A sleep within a hold is not forgiven to it, another account's key is. Who resumes
from a limit that is spent has decided to spend more. Of what the way home needs a box may take while it has not said,
since a wake, a start of the daemon, a wall clock set ahead or its own first stage, that training goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.domain.estimate import RESERVE
from daemon.domain.money import MICRO

from .machine import Machine
from .market import OFFER, OURS, offered

if TYPE_CHECKING:
    import sqlite3

    from .invariants import Witness

STRIDE_S = 60.0
JOBS = """
    SELECT id, state, hold_reason IS NULL AND wish IS NULL AS free, EXISTS (
        SELECT 1 FROM stages s WHERE s.job_id = j.id AND s.attempt = j.attempt AND s.done_at IS NULL AND stage <> 'GGUF'
    ) AS trains FROM jobs j"""
RESCUE_S = 1462.0  # of a model of 8e9 parameters, for which this tier's is taken, over a line of 50 Mbit/s
WAY_HOME = RESERVE * OFFER.price_per_hour * RESCUE_S / 3600


@dataclass
class Idle:
    """What a machine bills in one hold, beyond the work."""

    since: float  # micro-dollars that it had billed so as the hold began
    last: float  # the same at the last look
    dearest: int  # price per hour, of those seen in the hold


class Spending:
    """`held` is told of every hold, and then `look` of what was committed."""

    def __init__(self, witness: Witness) -> None:
        self.witness, self.sim = witness, witness.sim
        self._idle: dict[str, dict[int, Idle]] = {}  # of the holds under way, by job and machine
        self._billed: dict[int, float] = {}  # at the last look
        self._forgiven: dict[int, float] = {}  # of it
        self._gone: set[int] = set()  # at the last look
        self._upheavals = self._count_upheavals()
        self._awake_since = 0.0  # monotonic: the last of these
        self._excused: dict[str, float] = {}  # had been spent when the box had last not said whether training goes on
        self._keyless = False  # at the last look
        self._spent_out: set[str] = set()  # jobs that were held for their limit
        self._counted: dict[int, int] = {}  # micro-dollars, by lease
        self._recounts: dict[int, int] = {}  # events, by lease

    def forget(self) -> None:
        """An older database was put back."""
        self._counted.clear()

    def held(self, job: str, reason: str | None, *, goes_on: bool) -> None:
        """A hold began, or ended. One that took another's place with nobody's word `goes_on` with its limit."""
        if not goes_on:
            self._idle.pop(job, None)
        if reason is not None and not goes_on:
            self._idle[job] = {}
        if reason == "BUDGET":
            self._spent_out.add(job)

    def look(self) -> None:
        self._never_falls()
        known: dict[str, list[Machine]] = {}
        live: dict[str, Machine] = {}
        for row in self.witness.rows("SELECT job_id, instance_id, state FROM leases WHERE job_id IS NOT NULL"):
            machine = self.sim.market.machines[row["instance_id"]]
            known.setdefault(row["job_id"], []).append(machine)
            if row["state"] == "LIVE":
                live[row["job_id"]] = machine
        was_keyless, self._keyless = self._keyless, self.sim.market.account_of_key != OURS
        keyless = was_keyless or self._keyless
        for job, begun in self._idle.items():
            self._hold(begun, live.get(job), forgiven=keyless)
        before, self._upheavals = self._upheavals, self._count_upheavals()
        asleep = self._upheavals[0] > before[0]
        if self._upheavals != before:
            self._awake_since = self.sim.clock.mono()
        for row in self.witness.rows(JOBS):
            machines = known.get(row["id"], [])
            spent = sum(self._spent(machine, forgiven=asleep or keyless or not row["free"]) for machine in machines)
            if machines and row["id"] not in self._spent_out:
                price = max(machine.price for machine in machines)
                if any(machine.looked_at < self._awake_since for machine in machines if machine.runs):
                    self._excused[row["id"]] = spent + self._stride(price)
                self._whole(row, spent, price)
        self._gone = set(self.witness.evidence.billed_when_gone)

    def _count_upheavals(self) -> tuple[float, int, int]:
        """Seconds slept, lives begun, steps of the wall clock ahead: after each the daemon asks anew."""
        clock = self.sim.clock
        return clock.boot() - clock.mono(), len(self.sim.lives), clock.set_aheads

    def _never_falls(self) -> None:
        found = self.witness.rows(
            "SELECT lease_id, count(*) AS n FROM events WHERE kind = 'lease.recounted' GROUP BY lease_id"
        )
        recounts = {row["lease_id"]: row["n"] for row in found}
        for row in self.witness.rows("SELECT id, instance_id, cost FROM leases"):
            known = recounts.get(row["id"], 0) == self._recounts.get(row["id"], 0)
            if row["cost"] < self._counted.get(row["id"], 0) and known:
                self.witness.accuse("I10", f"what was counted of {row['instance_id']} fell, and no charge says so")
            self._counted[row["id"]] = row["cost"]
        self._recounts = recounts

    def _hold(self, begun: dict[int, Idle], machine: Machine | None, *, forgiven: bool) -> None:
        if machine is None:
            begun.clear()
            return
        idle = machine.idle()
        hold = begun.setdefault(machine.id, Idle(idle, idle, machine.price))
        hold.dearest = max(hold.dearest, machine.price)
        if forgiven:
            hold.since += idle - hold.last
        hold.last = idle
        spent = idle - hold.since
        limit = self.sim.terms.hold * MICRO
        if self.sim.clock.boot() > self.sim.clock.mono():  # the box stops itself, and its patience is what a call takes
            limit += min(limit, machine.price * self.sim.settings.timing.ssh_patience / 3600)
            if hold.dearest != offered(machine.offer.id).price_per_hour:  # asleep it goes by the last it was told
                limit = max(limit, hold.dearest * machine.away_limit_s / 3600)
        if spent > limit + self._stride(machine.price):
            self.witness.accuse("I11", f"a hold cost more than limits.hold beyond the work, on {machine.id}")

    def _spent(self, machine: Machine, *, forgiven: bool) -> float:
        when_gone = self.witness.evidence.billed_when_gone
        billed = when_gone.get(machine.id, machine.billed())
        came_back = machine.id in self._gone and machine.id not in when_gone
        if forgiven or came_back or machine.id not in self._billed:
            more = billed - self._billed.get(machine.id, 0.0)
            self._forgiven[machine.id] = self._forgiven.get(machine.id, 0.0) + more
        self._billed[machine.id] = billed
        return billed - self._forgiven[machine.id]

    def _whole(self, job: sqlite3.Row, spent: float, price: int) -> None:
        if self.sim.sky.strokes["restored"]:  # what an older database forgot is counted by nobody
            return
        limit = self.sim.terms.cost * MICRO + self._stride(price)
        trained = max(limit - WAY_HOME, min(limit, self._excused.get(job["id"], 0.0)))
        if spent > limit:
            self.witness.accuse("I11", f"limits.cost is spent in {job['state']}")
        elif job["free"] and job["trains"] and spent > trained:
            self.witness.accuse("I11", f"what the way home needs is spent in {job['state']}")

    def _stride(self, price: int) -> float:
        return price * STRIDE_S * (1 + self.sim.clock.set_backs) / 3600
