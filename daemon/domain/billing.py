"""What a machine may have billed between two looks at it: the dearer of what both of them said, never less.

A look says the status and the prices of its moment; what happened in between nobody saw. Two looks that say the same
thing about the GPU are believed, unless we asked for a start between them: it may have run, and stopped by itself. Any
other pair may hide a machine that ran all the time, at the higher price.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from daemon.domain.market import Charge
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


class Span(NamedTuple):
    """The time between two looks. `cost` in micro-dollars; of the two times, in milliseconds, at most one is not 0."""

    cost: int
    running_ms: int  # may have billed the GPU
    idle_ms: int  # billed the disk alone


def afterwards(last: Lease, now_ms: int, *, started: bool) -> int:
    """Micro-dollars since the last look at a held machine, when no other will come: it is gone, or written off.

    One that was out of the market's sight then may have come back and run, and so may one that was `started` since: a
    start was sent, and the market did not refuse it.
    """
    may_run = started or BILLS.get(last.status, _RUNS) == _OFFLINE
    rate = last.price_per_hour if may_run else last.rate
    return accrued(rate, now_ms - (last.observed_ms or last.created_at))


def by_charges(lease: Lease, charges: Iterable[Charge], now_ms: int) -> int:
    """Micro-dollars until `now_ms` or its end, at most: what was charged, and the full price of what no charge covers.

    Our own count of a long sleep supposes that the machine ran; a charge that says from when to when knows better.
    """
    ours = [charge for charge in charges if charge.instance_id == lease.instance_id]
    covered = sorted((c.start_ms, c.end_ms) for c in ours if c.start_ms is not None and c.end_ms is not None)
    if not covered:
        return lease.time_cost_at(now_ms)
    until_ms = now_ms if lease.gone_at is None else lease.gone_at
    at, uncovered_ms = lease.created_at, 0
    for start_ms, end_ms in [*covered, (until_ms, until_ms)]:
        uncovered_ms += max(0, start_ms - at)
        at = max(at, end_ms)
    return sum(charge.amount for charge in ours) + accrued(lease.price_per_hour, uncovered_ms)


def is_charged_to_the_end(lease: Lease, charges: Iterable[Charge]) -> bool:
    """What was charged covers the machine until a listing showed it last: charges may come later than they are asked
    for, and a part of them is not what it cost.
    """
    ends = [c.end_ms for c in charges if c.instance_id == lease.instance_id and c.end_ms is not None]
    return bool(ends) and max(ends) >= (lease.last_seen or lease.created_at)


def between(last: Lease, status: str | None, price: int, storage: int, now_ms: int, *, started: bool) -> Span:
    """From the last look, as `last` has it, to one that sees `status` and these prices, in micro-dollars an hour.

    `started`: a start was sent in between, and the market did not refuse it.
    """
    elapsed_ms = max(0, now_ms - (last.observed_ms or last.created_at))
    bills = BILLS.get(status, _RUNS)
    if started or bills == _RUNS or bills != BILLS.get(last.status, _RUNS):
        return Span(accrued(max(price, last.price_per_hour), elapsed_ms), elapsed_ms, 0)
    if bills == _OFFLINE:
        return Span(0, 0, 0)
    return Span(accrued(max(storage, last.storage_per_hour), elapsed_ms), 0, elapsed_ms)
