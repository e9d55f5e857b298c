"""What an instance cost, from its intervals and its traffic. Pure.

Loading and stopped: disk. Running: GPUs and disk. Offline: nothing. Traffic: per byte both ways, in every state.
Seconds are real whatever the time scale, so a sandbox job costs what its seconds are worth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .instances import Rates

HOUR_S = 3600
GB = 10**9

# state of an interval -> which rates it pays
PAYS: dict[str, frozenset[str]] = {
    "loading": frozenset({"disk"}),
    "running": frozenset({"gpu", "disk"}),
    "stopped": frozenset({"disk"}),
    "offline": frozenset(),
}


@dataclass(frozen=True)
class Interval:
    """One state from `start` to `stop` (unix seconds) at one GPU price in $/h; `stop` None: it goes on."""

    state: str
    start: float
    stop: float | None
    gpu_hour: float


@dataclass(frozen=True)
class Cost:
    """Dollars, by the market's item names: bwd is traffic into the box, bwu out of it."""

    gpu: float
    disk: float
    bwd: float
    bwu: float

    @property
    def total(self) -> float:
        return self.gpu + self.disk + self.bwd + self.bwu


def cost(intervals: Iterable[Interval], rates: Rates, bytes_in: int, bytes_out: int, now: float) -> Cost:
    """The cost up to `now`."""
    due = {"gpu": 0.0, "disk": 0.0}
    for interval in intervals:
        hours = ((now if interval.stop is None else interval.stop) - interval.start) / HOUR_S
        prices = {"gpu": interval.gpu_hour, "disk": rates.disk_hour}
        for item in PAYS[interval.state]:
            due[item] += hours * prices[item]
    return Cost(
        gpu=due["gpu"],
        disk=due["disk"],
        bwd=bytes_in / GB * rates.gb_in,
        bwu=bytes_out / GB * rates.gb_out,
    )


def decimal(dollars: float) -> str:
    """Dollars as the decimal string of the ledger: six places, exact to the micro-dollar."""
    return f"{dollars:.6f}"
