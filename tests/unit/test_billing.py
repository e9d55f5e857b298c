"""What a machine may have billed between two looks: never less than the market, and nothing is re-priced later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scripted import instance
from store import INSTANCE, NOW, add_job, add_lease, opened

from daemon.domain.billing import between
from daemon.domain.records import Lease, LeaseState
from daemon.store import leases

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
    assert between(last(was), seen, PRICE, DISK, NOW).cost == cost


@pytest.mark.parametrize(("was", "seen"), [(2 * PRICE, PRICE), (PRICE, 2 * PRICE)])
def test_a_price_that_changed_in_between(was: int, seen: int) -> None:
    """Nobody saw when it changed: the higher one is counted."""
    assert between(last("running", price=was), "running", seen, DISK, NOW).cost == 2 * PRICE


def test_a_clock_set_back_takes_nothing_away() -> None:
    """Before the last look there is no time to bill."""
    assert between(last("running"), "running", PRICE, DISK, NOW - 2 * HOUR).cost == 0


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
