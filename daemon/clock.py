"""Three clocks behind one object, so that tests and the simulator can move them.

mono   seconds that pass while this process runs; stops in suspend. For local time-outs.
boot   seconds that pass in the world, suspend included. For windows such as "two listings 30 s apart".
wall   UTC milliseconds. For records and money; may be stepped by NTP or a person.

The daemon's own wall clock is the steady one below, so that no window reckoned by records grows by a step back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from daemon import platform


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


class SteadyClock:
    """The same clocks, but no wall time that was lived through is ever taken back while this process runs.

    An hour set back would let a hold, and everything else that is reckoned by stored times, last an hour longer. A step
    ahead is believed as long as it lasts: time may have passed that no clock here saw, as in a paused virtual machine.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_ms = clock.wall_ms() - round(clock.boot() * 1000)

    def mono(self) -> float:
        return self._clock.mono()

    def boot(self) -> float:
        return self._clock.boot()

    def wall_ms(self) -> int:
        return max(self._clock.wall_ms(), self._began_ms + round(self._clock.boot() * 1000))


@dataclass
class ManualClock:
    """A clock that moves when told: `advance` passes awake time, `suspend` passes time asleep."""

    mono_s: float = 1_000.0
    boot_s: float = 1_000.0
    wall: int = 1_790_000_000_000

    def mono(self) -> float:
        return self.mono_s

    def boot(self) -> float:
        return self.boot_s

    def wall_ms(self) -> int:
        return self.wall

    def advance(self, seconds: float) -> None:
        self.mono_s += seconds
        self.boot_s += seconds
        self.wall += round(seconds * 1000)

    def suspend(self, seconds: float) -> None:
        self.boot_s += seconds
        self.wall += round(seconds * 1000)


def iso(ms: int) -> str:
    """UTC milliseconds as ISO-8601 with a Z."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
