"""Three clocks behind one object, so that tests and the simulator can move them.

mono   seconds that pass while this process runs; stops in suspend. For local time-outs.
boot   seconds that pass in the world, suspend included. For windows such as "two listings 30 s apart".
wall   UTC milliseconds. For records and money; may be stepped by NTP or a person.

The daemon's own is the steady one below: no window reckoned by records grows by a step back, and it knows since when
somebody has been looking.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from daemon import platform

SLEPT_S = 5.0  # more time passed in the world than for us: the workstation slept
STOPPED_S = 12.0  # nobody asked for so long: we were stopped, or starved of the processor
AHEAD_MS = 60_000  # what a request takes, and what two clocks may differ by


class Clock(Protocol):
    def mono(self) -> float: ...
    def boot(self) -> float: ...
    def wall_ms(self) -> int: ...


class SystemClock:
    def mono(self) -> float:
        return time.monotonic()

    def boot(self) -> float:
        return platform.boot_seconds()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class DaemonClock(Clock, Protocol):
    def awake_since_ms(self) -> int:
        """Since when we have been running, without a sleep and by a clock that nobody set.

        Patience counts from there: before it nobody looked, or nobody knows for how long.
        """
        ...

    def not_ahead_of(self, ms: int) -> None:
        """The market's clock shows `ms`. Where ours is ahead of it by memory alone, that is given up."""
        ...


class SteadyClock:
    """The same clocks, but no wall time that was lived through is taken back, in this process or from the one before.

    An hour set back would let a hold, and everything else that is reckoned by stored times, last an hour longer; and a
    computer whose battery is empty begins years ago, until it finds the network. A step ahead is believed as long as it
    lasts: time may have passed that no clock here saw, as in a paused virtual machine.

    Seen to run without a sleep as long as somebody asks `awake_since_ms` every few seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ms = clock.wall_ms() - round(clock.boot() * 1000)
        self._asked = (clock.mono(), clock.boot(), clock.wall_ms())
        self._awake_since_ms = clock.wall_ms()

    def mono(self) -> float:
        return self._clock.mono()

    def boot(self) -> float:
        return self._clock.boot()

    def wall_ms(self) -> int:
        return max(self._clock.wall_ms(), self._lived_ms())

    def awake_since_ms(self) -> int:
        now = (self.mono(), self.boot(), self.wall_ms())
        awake_s, passed_s, shown_ms = (a - b for a, b in zip(now, self._asked, strict=True))
        self._asked = now
        is_set = abs(shown_ms / 1000 - passed_s) > SLEPT_S
        if passed_s - awake_s > SLEPT_S or awake_s > STOPPED_S or is_set:
            self._awake_since_ms = self.wall_ms()
        return self._awake_since_ms

    def not_before(self, ms: int) -> None:
        """The process before this one has lived through `ms`."""
        self._began_ms += max(0, ms - self.wall_ms())

    def not_ahead_of(self, ms: int) -> None:
        """What was lived through was shown by a clock that was wrong, or was that of another computer."""
        known_ms = max(self._clock.wall_ms(), ms)
        if self._lived_ms() - known_ms > AHEAD_MS:
            self._began_ms -= self._lived_ms() - known_ms

    def _lived_ms(self) -> int:
        return self._began_ms + round(self._clock.boot() * 1000)


@dataclass
class ManualClock:
    """A clock that moves when told: `advance` passes awake time, `suspend` passes time asleep."""

    mono_s: float = 1_000.0
    boot_s: float = 1_000.0
    wall: int = 1_790_000_000_000
    awake_since: int = 0

    def mono(self) -> float:
        return self.mono_s

    def boot(self) -> float:
        return self.boot_s

    def wall_ms(self) -> int:
        return self.wall

    def awake_since_ms(self) -> int:
        return self.awake_since

    def not_ahead_of(self, ms: int) -> None:
        """It shows what it was told."""

    def advance(self, seconds: float) -> None:
        self.mono_s += seconds
        self.boot_s += seconds
        self.wall += round(seconds * 1000)

    def suspend(self, seconds: float) -> None:
        self.boot_s += seconds
        self.wall += round(seconds * 1000)
        self.awake_since = self.wall


def iso(ms: int) -> str:
    """UTC milliseconds as ISO-8601 with a Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
