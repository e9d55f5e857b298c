"""What a range of seeds came to, and how a range is spread over processes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Portion:
    """`cells` that were reached, and what each bad seed violated first."""

    seeds: int = 0
    cells: set[Any] = field(default_factory=set)
    violations: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Portion) -> None:
        self.seeds += other.seeds
        self.cells |= other.cells
        self.violations += other.violations


def portions(
    run: Callable[[range], Portion], seeds: range, size: int, jobs: int, until: float | None = None
) -> Iterator[Portion]:
    """`seeds` in order, `size` at a time, in `jobs` processes; none that is not done at `until` (monotonic)."""
    parts = [seeds[at : at + size] for at in range(0, len(seeds), size)]
    pool = workers(jobs)
    try:
        for portion in pool.map(run, parts):
            yield portion
            if until is not None and time.monotonic() >= until:
                return
    finally:
        pool.shutdown(cancel_futures=True)


def workers(count: int) -> ProcessPoolExecutor:
    """Processes for runs. A run is one cycle of objects, and most of them are short-lived: collected seldom, it takes a
    quarter less.
    """
    return ProcessPoolExecutor(count, initializer=gc.set_threshold, initargs=(100_000,))
