"""What strikes a run: its aim's road, noise, and what crashes, sleeps and clocks do to the daemon of the model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

from daemon.clock import AHEAD_MS
from daemon.domain.lifecycle import JobState
from tests.simulation.coverage import Cell, needs_met
from tests.simulation.decision import checks, faults, reconcile
from tests.simulation.decision.market import FOR_EVER, Machine
from tests.simulation.decision.roads import Strike
from tests.simulation.decision.world import EPOCH_MS, Memory, World


@cache
def fitting(action: str, side: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The faults that can strike at this boundary, and those of them that can strike at few others."""
    able = [fault for fault in faults.FAULTS if needs_met(fault.need, action, side)]
    common = (faults.Need.NOTHING, faults.Need.MACHINE)
    return tuple(f.name for f in able), tuple(f.name for f in able if f.need not in common)


@dataclass
class Chaos:
    """The part of a run that faults touch, and the counts of what they did. Times in true milliseconds."""

    seed: int
    aim: Cell | None = None
    tracing: bool = False
    cells: set[Cell] = field(default_factory=set)
    struck: set[str] = field(default_factory=set)
    strikes: list[Strike] = field(default_factory=list)
    noise: float = 0.0
    interrupted: bool = False
    crashed: bool = False
    record_fails: bool = False
    revived: bool = False
    asked_to_end: bool = False
    disturbed: int = 0
    slept: int = 0
    sleeps: int = 0
    slept_in_step: bool = False
    blind_ms: int = 0
    unseen_ms: int = 0  # asleep, or of a wrong clock, while something billed that no look before or after tells of
    set_backs: int = 0  # of the daemon's wall clock: each may cost a stride that no reckoning sees
    hold_since: int | None = None  # as the row has it, and when that was
    held_from: int = 0
    listed_at: int = 0  # when this step began
    next_pass: int = 0
    passed_at: int = 0  # the last trusted listing
    known_at: int = 0  # the one that this step was decided by
    spoke: bool = False  # the person, at this boundary
    rng: random.Random = field(init=False)
    w: World = field(init=False)

    def _moved(self, was: JobState, *, by_person: bool) -> None:
        to = self.w.store.job.state
        checks.at_move(self, was, to, by_person or self.spoke)  # type: ignore[arg-type]
        self._say(f"{was} -> {to}")

    def _say(self, text: str) -> None:
        raise NotImplementedError

    def _strike(self, state: JobState, action: str, side: str) -> None:
        self.spoke = False
        if self.strikes:
            first = self.strikes[0]
            if first.fits(state, action, side) and self._do(first.fault, state, action, side):
                self.strikes.pop(0)
        if self.noise and self.rng.random() < self.noise:
            anywhere, here = fitting(action, side)
            self._do(self.rng.choice(here if here and self.rng.random() < 0.5 else anywhere), state, action, side)

    def note_hold(self) -> None:
        """A hold that began: what disturbs it is counted from here."""
        since = self.w.store.job.hold_since
        if since not in (None, self.hold_since):
            self.held_from = self.listed_at
            self.blind_ms = self.slept = self.sleeps = self.disturbed = 0
        self.hold_since = since

    def _do(self, name: str, state: JobState, action: str, side: str) -> bool:
        self.note_hold()
        fault = faults.BY_NAME[name]
        if not needs_met(fault.need, action, side) or not fault.strike(self):
            return False
        self.struck.add(name)
        # What a machine did or cost since the last listing is overlaid by what it does or costs now.
        if fault.family == "F8" or name == "the price falls":
            self.unseen_ms += self.w.now - self.passed_at
        self.cells.add(Cell(state, name, action, side))
        self.disturbed += fault.family in ("F4", "F6", "F8", "F13", "F15", "F16", "F5")
        if fault.family == "F13":
            self.spoke = True
            self.asked_to_end |= name in ("jobctl cancel", "jobctl cancel --discard", "jobctl abandon")
            if self.w.store.job.state is not state:
                self._moved(state, by_person=True)
        self.revived |= name == "gone, and back"
        if self.tracing:
            self._say(f"  !! {fault.family} {name} ({side} the effect of {action})")
        return True

    def struck_machine(self) -> Machine | None:
        machine = self.w.machine(self.w.store.live)
        if machine is None or not machine.is_billable:
            machine = next((m for m in reversed(self.w.market.machines) if m.ours and m.is_billable), None)
        return machine

    def crash(self) -> bool:
        self.crashed = True
        return True

    def fail_record(self) -> bool:
        self.record_fails = True
        return True

    def sleep(self, ms: int) -> bool:
        """Nothing here runs; the world does. The first call after it finds dead connections, or does not."""
        w = self.w
        watched = [m for m in w.market.machines if m.ours and m.is_billable]
        before = [m.idle_cost for m in watched]
        # What bills then, nobody can know: the market does not see it, or it boots and stops itself meanwhile.
        self.unseen_ms += ms * any(m.offline_until > w.now or m.boots_at < FOR_EVER for m in watched)
        w.now += ms
        w.asleep_ms += ms
        self.slept += ms
        self.sleeps += 1
        self.slept_in_step = True
        w.market.advance(w.now)
        for m, cost in zip(watched, before, strict=True):
            checks.in_absence(self, m, m.idle_cost - cost)
        w.memory.failures = 0
        w.wake()
        self.next_pass = w.now
        if self.rng.random() < 0.5:
            w.market.cut_until = w.now + 2_000
        return True

    def step_wall(self, ms: int) -> bool:
        self._set_clock(self.w.wall_off + ms, self.w.floor_off)
        return True

    def _set_clock(self, wall_off: int, floor_off: int) -> None:
        """Where it is set back, nobody knows how much of the time since the last listing it had been ahead for."""
        w = self.w
        before = w.wall
        if w.set_clock(wall_off, floor_off):
            self.set_backs += 1
            self.unseen_ms += min(before - w.wall, w.now - self.passed_at)

    def restart(self) -> None:
        """Another process: what it remembers is empty, and its clock goes on where the rows end."""
        w = self.w
        w.memory, w.last_pass = Memory(), None
        lived = w.store.newest() - EPOCH_MS - w.now
        self._set_clock(w.wall_off, max(w.wall_off, lived))
        w.wake()

    def renew(self) -> None:
        """The first thing in a pass. A hold that goes on is no other one for it."""
        w = self.w
        known = self.hold_since == w.store.job.hold_since
        if reconcile.is_trusted(w) and w.floor_off - max(w.wall_off, 0) > AHEAD_MS:  # the market's clock is right
            self._set_clock(w.wall_off, max(w.wall_off, 0))
        reconcile.renew(w)
        if known:
            self.hold_since = w.store.job.hold_since
