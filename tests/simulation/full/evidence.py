"""By what evidence a machine is called gone, and a create never done: I16 and I17, against what the market gave out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from daemon.domain.market import UNREACHABLE

if TYPE_CHECKING:
    from .invariants import Witness

GONE_SPAN_S = 30.0
PASS_S = 60.0  # a word of the market is stored a pass after it was so
ABSENT_LISTINGS, ABSENT_SPAN_S = 5, 600.0 - 30.0  # the interval in which it was sent counts whole


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


class Evidence:
    """Looks at every commit. A restored database knows less than it did: `forget` begins anew."""

    def __init__(self, witness: Witness) -> None:
        self.witness, self.sim = witness, witness.sim
        self.billed_when_gone: dict[int, float] = {}  # or written off: what it bills afterwards is nobody's to know
        self._over: set[int] = set()
        self._absences: dict[int, _Absence] = {}
        self._unreachable: dict[int, float] = {}  # LIVE ones, since when by time awake
        self._sent: dict[str, _Sent] = {}  # creates, by label: a backup keeps what was seen before it

    def forget(self) -> None:
        self.billed_when_gone.clear()
        self._over.clear()
        self._absences.clear()
        self._unreachable.clear()

    def committed(self) -> None:
        self._gone_by_evidence()
        self._lost_by_evidence()
        self._absent_by_evidence()
        self._refused_by_the_market()

    def _gone_by_evidence(self) -> None:
        """Absences follow trusted listings, and GONE follows two of them, by the world's own clock."""
        now, looks = self.sim.clock.boot(), len(self.sim.market.given)
        for row in self.witness.rows("SELECT instance_id, state, absent_count FROM leases"):
            number, gone, count = row["instance_id"], row["state"] == "GONE", row["absent_count"]
            over = gone or row["state"] == "WRITTEN_OFF"
            known = self._absences.get(number)
            first = known.first_at if known is not None else now
            if known is None and over:
                self._over.add(number)  # an older database says so
            if known is None or count == 0:
                self._absences[number] = _Absence(count, max(0, looks - 2), now)  # the last may not be applied yet
            elif count > known.count:
                since = self.sim.market.given[known.looks :]
                if not any(given.trusted and number not in given.shown for given in since):
                    self.witness.accuse("I17", f"{number}: an absence that no trusted listing showed")
                self._absences[number] = _Absence(count, looks, now if known.count == 0 else known.first_at)
            if gone and number not in self._over and count >= 2 and now - first < GONE_SPAN_S - 2:
                self.witness.accuse("I16", f"{number} is GONE {now - first:.0f} s after it was first missed")
            if gone and number not in self._over and self.sim.market.machines[number].is_shown:
                self.witness.accuse("I16", f"{number} is GONE, and the market shows it to who asks by its id")
            if not over:
                self.billed_when_gone.pop(number, None)
            elif number not in self._over:
                self.billed_when_gone[number] = self.sim.market.machines[number].billed()
            (self._over.add if over else self._over.discard)(number)

    def _lost_by_evidence(self) -> None:
        """A host that the market does not reach is given up after the patience awake: nobody looks in a sleep."""
        now, patience_s = self.sim.loop.time(), self.sim.settings.timing.offline_patience
        for row in self.witness.rows("SELECT instance_id, state, status FROM leases"):
            number, unreachable = row["instance_id"], row["status"] in UNREACHABLE
            since = self._unreachable.pop(number, None)
            if unreachable and row["state"] == "LIVE":
                self._unreachable[number] = now if since is None else since
            elif unreachable and row["state"] == "LOST" and since is not None and now - since <= patience_s - PASS_S:
                self.witness.accuse("I16", f"{number} is LOST {now - since:.0f} s awake after it was out of reach")

    def _refused_by_the_market(self) -> None:
        for row in self.witness.rows("SELECT label FROM operations WHERE kind = 'create' AND state = 'REFUSED'"):
            if row["label"] not in self.sim.market.refused:
                self.witness.accuse("I16", "a create is REFUSED, and nobody refused it")

    def _absent_by_evidence(self) -> None:
        """A create that may have left is ABSENT after 5 trusted listings and 600 s awake since then."""
        now, looks = self.sim.loop.time(), len(self.sim.market.given)
        for row in self.witness.rows("SELECT label, state FROM operations WHERE kind = 'create' AND sent_at > 0"):
            known = self._sent.get(row["label"])
            if known is None:
                self._sent[row["label"]] = _Sent(now, looks, row["state"] == "ABSENT")
            elif row["state"] == "ABSENT" and not known.judged:
                self._sent[row["label"]] = replace(known, judged=True)
                trusted = sum(given.trusted for given in self.sim.market.given[known.looks :])
                if trusted < ABSENT_LISTINGS or now - known.at < ABSENT_SPAN_S:
                    self.witness.accuse(
                        "I16", f"a create is ABSENT after {trusted} listings and {now - known.at:.0f} s"
                    )
