"""What a machine may have billed between two looks: never less than the market, and nothing is re-priced later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scripted_market import instance
from store import INSTANCE, JOB, NOW, add_job, add_lease, opened

from daemon.domain.billing import afterwards, between, by_charges, is_charged_to_the_end
from daemon.domain.market import Charge
from daemon.domain.records import Kind, Lease, LeaseState, OpState
from daemon.store import leases, operations

HOUR = 3_600_000
PRICE, DISK = 2_000_000, 20_000


def last(status: str | None, price: int = PRICE, storage: int = DISK) -> Lease:
    """A lease as the last look, an hour ago, left it."""
    nothing = dict.fromkeys(Lease.__dataclass_fields__)
    held = {"state": LeaseState.LIVE, "created_at": NOW - HOUR, "observed_ms": NOW - HOUR}
    return Lease(**nothing | held | {"status": status, "price_per_hour": price, "storage_per_hour": storage})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("was", "seen", "cost"),
    [
        ("running", "running", PRICE),
        ("loading", "running", PRICE),
        ("running", "exited", PRICE),
        ("loading", "exited", PRICE),  # it may have come up and ended in between
        ("offline", "exited", PRICE),
        ("offline", "running", PRICE),
        ("unknown", "unknown", PRICE),
        ("brand-new word", "brand-new word", PRICE),
        (None, "loading", DISK),
        ("loading", "loading", DISK),
        ("exited", "stopped", DISK),
        ("offline", "offline", 0),
    ],
)
def test_an_hour_between_two_looks(was: str | None, seen: str, cost: int) -> None:
    """Two looks that agree about the GPU are believed; any other pair, and any unknown word, bills in full."""
    assert between(last(was), seen, PRICE, DISK, NOW, started=False).cost == cost


@pytest.mark.parametrize(("was", "seen"), [(2 * PRICE, PRICE), (PRICE, 2 * PRICE)])
def test_a_price_that_changed_in_between(was: int, seen: int) -> None:
    """Nobody saw when it changed: the higher one is counted."""
    assert between(last("running", price=was), "running", seen, DISK, NOW, started=False).cost == 2 * PRICE


@pytest.mark.parametrize(
    ("status", "started", "cost"),
    [
        ("running", False, PRICE),
        ("offline", False, PRICE),
        ("exited", False, DISK),
        ("exited", True, PRICE),
        ("unknown", False, PRICE),
    ],
)
def test_an_hour_that_no_look_follows(status: str, started: bool, cost: int) -> None:
    """It is gone, or written off: out of the market's sight it may have come back and run; stopped, it stayed so."""
    assert afterwards(replace(last(status), intended="stopped"), NOW, started=started) == cost


SLEPT = Charge(INSTANCE, None, 3 * DISK, NOW - HOUR, NOW)


@pytest.mark.parametrize(
    ("charges", "cost"),
    [
        ([], PRICE),
        ([SLEPT], 3 * DISK),
        ([replace(SLEPT, end_ms=NOW - HOUR // 2)], 3 * DISK + PRICE // 2),
        ([replace(SLEPT, start_ms=NOW - HOUR // 2)], 3 * DISK + PRICE // 2),
        ([replace(SLEPT, end_ms=NOW - HOUR // 2), replace(SLEPT, start_ms=NOW - HOUR // 2)], 6 * DISK),
        ([replace(SLEPT, start_ms=None, end_ms=None)], PRICE),
        ([replace(SLEPT, instance_id=INSTANCE + 1)], PRICE),
    ],
    ids=["none", "all of it", "not the end", "not the beginning", "in two", "without its times", "another's"],
)
def test_an_hour_asleep_by_the_charges(charges: list[Charge], cost: int) -> None:
    """What no charge covers costs the full price."""
    assert by_charges(replace(last("running"), instance_id=INSTANCE, cost=0), charges, NOW) == cost


def test_a_clock_set_back_takes_nothing_away() -> None:
    """Before the last look there is no time to bill."""
    assert between(last("running"), "running", PRICE, DISK, NOW - 2 * HOUR, started=False).cost == 0


@pytest.mark.parametrize("is_seen", [True, False], ids=["halted again", "gone"])
@pytest.mark.parametrize(
    ("states", "sent_after_h", "cost"),
    [
        ((OpState.DONE,), 0.5, PRICE),
        ((OpState.UNKNOWN, OpState.ABSENT), 0.5, PRICE),  # its answer lost, and nothing seen of it
        ((OpState.REFUSED,), 0.5, DISK),
        ((OpState.DONE,), -0.01, PRICE),  # that look came so soon that it may not show it
        ((OpState.DONE,), -0.5, DISK),  # a look came after it
    ],
)
def test_a_start_since_the_last_look(
    tmp_path: Path, states: tuple[OpState, ...], sent_after_h: float, cost: int, is_seen: bool
) -> None:
    """It was stopped when last seen, and we had it started: it may have run, and stopped by itself or ended."""
    database = opened(tmp_path)
    halted = replace(instance(INSTANCE, status="exited", intended="stopped"), storage_per_hour=DISK)
    with database.write() as c:
        add_job(c)
        lease = add_lease(c, price_per_hour=PRICE)
        leases.observe(c, leases.get(c, lease), halted, NOW + HOUR)
        before = leases.get(c, lease).cost
        start = operations.intend(c, Kind.START, NOW, 1, {}, job_id=JOB, lease_id=lease)
        operations.set_state(c, start, OpState.SENT, NOW + HOUR + round(sent_after_h * HOUR))
        for state in states:
            operations.set_state(c, start, state, NOW + 2 * HOUR)
        if is_seen:
            leases.observe(c, leases.get(c, lease), halted, NOW + 2 * HOUR)
        else:
            leases.set_state(c, leases.get(c, lease), LeaseState.GONE, NOW + 2 * HOUR, why="confirmed")
        counted = leases.get(c, lease).cost - before
    database.close()

    assert counted == cost


def test_what_was_counted_stays_counted(tmp_path: Path) -> None:
    """A lower price does not make the hours before it cheaper, and GONE keeps the time after the last sight."""
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
        lease = add_lease(c, price_per_hour=PRICE)
        for hours, price in ((1, PRICE), (2, PRICE // 2)):
            seen = replace(instance(INSTANCE), price_per_hour=price)
            leases.observe(c, leases.get(c, lease), seen, NOW + hours * HOUR)
        counted = leases.get(c, lease).cost_at(NOW + 3 * HOUR)
        leases.set_state(c, leases.get(c, lease), LeaseState.GONE, NOW + 3 * HOUR, why="destroyed")
        gone = leases.get(c, lease)
    database.close()

    assert counted == 2 * PRICE + PRICE // 2
    assert gone.cost_at(NOW + 30 * HOUR) == counted


@pytest.mark.parametrize(
    ("ends", "whole"),
    [([], False), ([None], False), ([NOW - HOUR], False), ([NOW - HOUR, NOW], True), ([NOW + HOUR], True)],
)
def test_a_part_of_the_charges_is_not_what_a_machine_cost(ends: list[int | None], whole: bool) -> None:
    """They may come late: only those that reach its last listing are all of them."""
    machine = replace(last("running"), instance_id=INSTANCE, last_seen=NOW)
    charges = [Charge(INSTANCE, None, 1, NOW - 2 * HOUR, end) for end in ends]
    stranger = Charge(INSTANCE + 1, None, 1, NOW - 2 * HOUR, NOW)

    assert is_charged_to_the_end(machine, [*charges, stranger]) == whole
