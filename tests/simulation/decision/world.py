"""What one run is made of: the clocks, the market, this workstation, the daemon's rows and what it only remembers."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.control import snapshot
from daemon.domain.records import LeaseState
from daemon.domain.snapshot import Rules, Snapshot
from daemon.settings import Timing
from tests.simulation.decision.market import HOUR_MS, Machine, Market
from tests.simulation.decision.store import LeaseRow, Store

EPOCH_MS = 1_790_000_000_000
TIMING = Timing()


@dataclass
class Memory(snapshot.Memory):
    """What the driver's process alone knows; a crash loses it."""

    failures: int = 0
    in_flight: set[int] = field(default_factory=set)
    missed: dict[int, int] = field(default_factory=dict)  # lease -> true time of the first look without it


@dataclass
class Home:
    """This workstation's disk, and the ledger of what really lies on it."""

    room: bool = True
    saved_at: int = -1  # true time
    spoils: int = 0  # transfers that will hash wrong
    verifies: bool = True
    touched: bool = False  # the verified folder was deleted or changed
    whole: set[str] = field(default_factory=set)  # manifests of which every file is here and right
    proven: set[tuple[int, str]] = field(default_factory=set)  # attempt and manifest


@dataclass
class World:
    """`now` is true time. Wall and awake clocks are derived: one may step, the other stands still in a sleep."""

    market: Market
    store: Store
    rules: Rules
    now: int = 0
    asleep_ms: int = 0
    wall_off: int = 0  # the system's wall clock, ahead of true time
    floor_off: int = 0  # what was lived through: its own clock does not fall below
    off: int = 0  # its own clock, as daemon/clock.py, SteadyClock
    set_back: bool = False  # since the last pass
    awake_since: int = 0  # its own clock when this process began, or the last sleep ended
    woke_at: int = 0  # the same in true time
    looked_at: int = -1  # in true time; when a box last said that its stage has not ended
    memory: Memory = field(default_factory=Memory)
    home: Home = field(default_factory=Home)
    typed: dict[int, tuple[int, int]] = field(default_factory=dict)  # instance: attempt, true time; a person's word
    last_pass: int | None = None  # awake time of the last trusted pass
    pass_soon: bool = False
    trusted_passes: int = 0

    @property
    def wall(self) -> int:
        return EPOCH_MS + self.now + self.off

    def set_clock(self, wall_off: int, floor_off: int) -> bool:
        """Whether the process's own clock is set back by it."""
        before, self.off = self.off, max(wall_off, floor_off)
        self.wall_off, self.floor_off = wall_off, floor_off
        if self.off != before:
            self.wake()
        self.set_back |= self.off < before
        return self.off < before

    def wake(self) -> None:
        """As daemon/clock.py, awake_since_ms: a sleep ended, or the clock was set."""
        self.awake_since, self.woke_at = self.wall, self.now

    @property
    def awake(self) -> int:
        return self.now - self.asleep_ms

    def machine(self, lease: LeaseRow | None) -> Machine | None:
        return self.market.by_id(lease.instance_id) if lease is not None else None

    def take(self) -> Snapshot:
        """As daemon/control/snapshot.py."""
        store, memory, wall = self.store, self.memory, self.wall
        memory.not_after(wall)
        job, live = store.job, store.live
        runs = tuple(store.of_attempt())
        token = None
        if store.tokens:
            usable = (store.usable_token(lease.instance_id, wall) for lease in store.leases if lease.is_held)
            token = next((t for t in usable if t is not None), None)
        failure = None
        if memory.failure is not None:
            current = next((run for run in runs if run.done_at is None), None)
            failure = memory.failure[1] if current is not None and current.nonce == memory.failure[0] else None
        return Snapshot(
            wall, job, self.rules, live, tuple(store.leases), tuple(store.operations), runs,
            store.current_receipt() if store.receipts else None, self._loss_ms(live, wall), token, store.report,
            failure, job.manifest_sha256 is not None and store.downloaded == job.manifest_sha256,
            store.events["saved"] > store.events["held"],
            memory.asked_market_ms, memory.nothing_fits_since_ms, store.events["accepted"] > store.events["moved"],
            memory.link_down_since_ms, memory.looked_ms, self.awake_since, 0, memory.silent_since_ms,
        )  # fmt: skip

    def _loss_ms(self, lease: LeaseRow | None, wall: int) -> int | None:
        if lease is None:
            return None
        burn = sum([lease.rate for lease in self.store.leases if lease.state is not LeaseState.GONE])
        ends = [lease.end_ms] if lease.end_ms is not None else []
        if self.store.credit is not None and burn > 0:
            ends.append(wall + self.store.credit * HOUR_MS // burn)
        return min(ends, default=None)

    def listed(self) -> list[Machine]:
        return [m for m in self.market.machines if m.listed(self.now)]

    def known_lost(self) -> set[int]:
        gone_by_us = (LeaseState.LOST, LeaseState.WRITTEN_OFF)
        return {lease.instance_id for lease in self.store.leases if lease.state in gone_by_us}
