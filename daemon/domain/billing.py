"""What a machine may have billed between two looks at it: the dearer of what both of them said, never less.

A look says the status and the prices of its moment; what happened in between nobody saw. Two looks that say the same
thing about the GPU are believed, any other pair may hide a machine that ran all the time, at the higher price.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.domain.money import accrued
from daemon.domain.records import Lease

_NEVER_RAN, _HALTED, _OFFLINE, _RUNS = "disk: not up yet", "disk: stopped", "nothing", "everything"
BILLS: dict[str | None, str] = {  # any other status, known or not, bills everything
    None: _NEVER_RAN,
    "created": _NEVER_RAN,
    "loading": _NEVER_RAN,
    "stopped": _HALTED,
    "exited": _HALTED,
    "offline": _OFFLINE,
}


@dataclass(frozen=True)
class Span:
    """The time between two looks. `cost` in micro-dollars; of the two times, in milliseconds, at most one is not 0."""

    cost: int
    running_ms: int  # may have billed the GPU
    idle_ms: int  # billed the disk alone


def between(last: Lease, status: str | None, price: int, storage: int, now_ms: int) -> Span:
    """From the last look, as `last` has it, to one that sees `status` and these prices, in micro-dollars an hour."""
    elapsed_ms = max(0, now_ms - (last.observed_ms or last.created_at))
    bills = BILLS.get(status, _RUNS)
    if bills == _RUNS or bills != BILLS.get(last.status, _RUNS):
        return Span(accrued(max(price, last.price_per_hour), elapsed_ms), elapsed_ms, 0)
    if bills == _OFFLINE:
        return Span(0, 0, 0)
    return Span(accrued(max(storage, last.storage_per_hour), elapsed_ms), 0, elapsed_ms)
