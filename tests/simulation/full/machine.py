"""One rented machine: what the market lists, what it truly does, what it bills; and the disk of the box on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.domain.ids import label_job
from daemon.domain.market import Instance, Offer

if TYPE_CHECKING:
    from .loop import Life
    from .simulation import Simulation

STORAGE_PER_HOUR = 20_000  # micro-dollars


@dataclass(eq=False)
class Machine:
    """All times are the world's (seconds since boot of the simulation, sleep of the workstation included)."""

    sim: Simulation
    id: int
    label: str | None
    offer: Offer
    ready_s: float
    away_limit_s: float
    intended: str = "running"
    powered: bool = False
    queued: bool = False
    queued_for: Life | None = None  # who asked for the start, and lives to be told that it only queued
    ended_at: float | None = None
    ends_at: float | None = None  # a destroy that lingers
    hidden_until: float = 0.0  # for listings and for who asks by its id
    unlisted_until: float = 0.0  # for listings alone
    listed_from: float = 0.0
    charged_from: float = 0.0
    offline_until: float = 0.0
    port: int = 22_000
    host_key: str = "ssh-ed25519 AAAA-first"
    price: int = 0
    challenge: dict[str, str] = field(default_factory=dict)
    looked_at: float = -1.0  # monotonic; when the box last said that its stage has not ended
    touched: list[str] = field(default_factory=list)  # changing calls that reached it
    history: list[tuple[float, str, str]] = field(default_factory=list)  # (since, actual, intended)
    job: str | None = None  # for which it was rented: a label may be edited, this stays
    _bill: float = 0.0
    _idle: float = 0.0  # of it, at the full price while nothing ran
    _billed_to: float = 0.0
    _ready_at: float = 0.0

    def __post_init__(self) -> None:
        self.price, self.job = self.offer.price_per_hour, label_job(self.label)
        self.created = self._billed_to = self.sim.clock.boot()
        self._ready_at = self.created + self.ready_s
        self._note()

    # -- what is true

    @property
    def is_there(self) -> bool:
        self.advance()
        return self.ended_at is None

    @property
    def runs(self) -> bool:
        return self.status == "running"

    @property
    def status(self) -> str:
        """The market's word for what is true now."""
        self.advance()
        if self.offline_until > self.sim.clock.boot():
            return "offline"
        if self.intended == "stopped" or self.queued:
            return "stopped"
        return "running" if self.powered else "loading"

    def advance(self) -> None:
        """Bring bill and power up to now."""
        now = self.sim.clock.boot()
        if self.ended_at is not None:
            return
        until = min(now, self.ends_at) if self.ends_at is not None else now
        if not self.powered and self.intended == "running" and not self.queued and self._ready_at <= until:
            self._charge(max(self._ready_at, self._billed_to))
            self.powered = True
            self._note(self._ready_at)
        if self.powered and self.away_limit_s < math.inf:
            self._stop_when_forgotten(until)
        self._charge(until)
        if self.ends_at is not None and self.ends_at <= now:
            self.ended_at = self.ends_at

    def _stop_when_forgotten(self, until: float) -> None:
        """The watch of its start script: nothing runs, and nobody calls for as long as `limits.hold` pays for."""
        disk = self.sim.boxes.box(self.id)
        disk.advance()
        stopped_at = max(disk.quiet_since, self._ready_at) + self.away_limit_s
        if disk.running is None and stopped_at <= until:
            self._charge(stopped_at)
            disk.reboot()
            self.intended, self.powered = "stopped", False
            self.sim.say("box", f"{self.id} stops itself: nobody calls")
            self._note(stopped_at)

    def _charge(self, until: float) -> None:
        rate = self.price if self.powered else STORAGE_PER_HOUR
        seconds = max(0.0, until - self._billed_to)
        if self.offline_until > self._billed_to:  # an offline host bills nothing
            seconds = max(0.0, until - max(self._billed_to, min(self.offline_until, until)))
        self._bill += rate * seconds / 3600
        if self.powered and self.away_limit_s < math.inf:
            self._idle += rate * min(seconds, self._quiet_s(until)) / 3600
        self._billed_to = max(until, self._billed_to)

    def _quiet_s(self, until: float) -> float:
        """Of the time since the last bill: without a stage that runs."""
        disk = self.sim.boxes.box(self.id)
        disk.advance()
        return 0.0 if disk.running else max(0.0, until - max(disk.quiet_since, self._billed_to))

    def billed(self) -> float:
        self.advance()
        return self._bill

    def idle(self) -> float:
        """What it billed at the full price while no stage ran on it."""
        self.advance()
        return self._idle

    # -- what is done to it

    def end(self, after_s: float = 0.0) -> None:
        self.advance()
        self.ends_at = min(self.ends_at or float("inf"), self.sim.clock.boot() + after_s)
        self.advance()
        self._note()

    def called(self, silence_s: float | None) -> None:
        """From home, by a command that says how long the next one may stay away."""
        self.advance()
        disk = self.sim.boxes.box(self.id)
        disk.advance()
        disk.quiet_since = self.sim.clock.boot()
        if silence_s is not None:
            self.away_limit_s = silence_s

    def hide(self, seconds: float) -> None:
        self.hidden_until = self.sim.clock.boot() + seconds

    def unlist(self, seconds: float) -> None:
        self.unlisted_until = self.sim.clock.boot() + seconds

    def power_off(self) -> None:
        self.advance()
        self.sim.boxes.box(self.id).reboot()  # what ran until now is on its disk
        self.intended, self.powered, self.queued = "stopped", False, False
        self._note()

    def power_on(self) -> None:
        self.advance()
        if not self.powered:
            self.intended, self.queued = "running", False
            self._ready_at = self.sim.clock.boot() + 30.0
        self._note()

    def queue(self) -> None:
        self.advance()
        self.intended, self.queued, self.powered = "running", True, False
        self.queued_for = None
        self._note()

    def go_offline(self, seconds: float) -> None:
        self.advance()
        self.offline_until = self.sim.clock.boot() + seconds
        self._note()

    def reprice(self, price: int) -> None:
        """Only in sight: a price that came and went where nobody could look is nobody's to know."""
        if self.is_shown or self.is_listed(0.0):
            self.price = price

    def _note(self, at: float | None = None) -> None:
        self.history.append((self.sim.clock.boot() if at is None else at, self.status, self.intended))

    # -- what the market says

    def is_listed(self, behind_s: float) -> bool:
        now = self.sim.clock.boot()
        self.advance()
        if now < max(self.hidden_until, self.unlisted_until, self.listed_from) or self.created > now - behind_s:
            return False
        return self.ended_at is None or self.ended_at > now - behind_s

    @property
    def is_shown(self) -> bool:
        """To who asks by its id."""
        return self.is_there and self.sim.clock.boot() >= max(self.hidden_until, self.listed_from)

    def as_listed(self, behind_s: float) -> Instance:
        self.advance()
        then = self.sim.clock.boot() - behind_s
        actual, intended = next(
            ((a, i) for since, a, i in reversed(self.history) if since <= then), ("loading", "running")
        )
        if behind_s == 0.0:
            actual, intended = self.status, self.intended
        return Instance(
            id=self.id, label=self.label, actual_status=actual, intended_status=intended, cur_state=actual,
            status_msg="", machine_id=self.offer.machine_id, host_id=6, gpu_name=self.offer.gpu_name, num_gpus=1,
            price_per_hour=self.price, storage_per_hour=STORAGE_PER_HOUR, start_ms=None, end_ms=None,
            direct=("203.0.113.7", self.port), proxy=None, gpu_util=None,
        )  # fmt: skip
