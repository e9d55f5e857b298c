"""What the daemon has written so far, read from its database, so that a dead daemon can be watched too."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.schedule import STATES, Moment

BUSY_S = 30.0
TERMINAL = ("DESTROYED", "ABANDONED", "FAILED", "CANCELLED")


@dataclass(frozen=True)
class Sight:
    """The newest job, and every event as (id, what, body)."""

    job: str
    state: str  # empty: no job yet
    hold: str
    events: tuple[tuple[int, str, str], ...]

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def reached(self, moment: Moment, since: int) -> bool:
        """Whether `moment` has come or is past; without a state, whether its event was written after event `since`."""
        if not moment.state:
            return not moment.event or any(i > since and kind == moment.event for i, kind, _ in self.events)
        if not self.state:
            return False
        if self.ended or STATES.index(self.state) > STATES.index(moment.state):
            return True
        return self.state == moment.state and any(
            kind == moment.event for i, kind, _ in self.events if i >= self._entered()
        )

    def _entered(self) -> int:
        """The event that brought the job into its state."""
        moves = [i for i, kind, body in self.events if kind == "job.moved" and json.loads(body)["to"] == self.state]
        return moves[-1] if moves else 0


class Window:
    """A look at the database of the home `folder`, again and again."""

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(
            f"file:{folder / 'state' / 'homeport.db'}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
        )
        self._version, self._sight = 0, Sight("", "", "", ())

    def look(self) -> Sight:
        """Read again only what somebody has written since; events are never changed."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self._version = version  # first: what is written while we read is read the next time
            job = self._db.execute("SELECT id, state, hold_reason FROM jobs ORDER BY rowid DESC LIMIT 1").fetchone()
            known = self._sight.events
            new = self._db.execute(
                "SELECT id, kind, body FROM events WHERE id > ? ORDER BY id", (known[-1][0] if known else 0,)
            )
            ident, state, hold = job or ("", "", "")
            self._sight = Sight(ident, state, hold or "", (*known, *new))
        return self._sight

    def one(self, query: str) -> str:
        return str(self._db.execute(query).fetchone()[0])

    def close(self) -> None:
        self._db.close()
