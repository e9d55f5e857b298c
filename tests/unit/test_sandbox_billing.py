"""What the sandbox's ledger counts, to the micro-dollar: every state, both directions, a bid that changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.sandbox.billing import GB, HOUR_S, Interval, cost, decimal
from daemon.sandbox.instances import EXITED, RUNNING, STOPPED, Instance, Rates
from daemon.sandbox.ledger import OPENING_CREDIT, Ledger
from daemon.sandbox.traffic import Traffic

RATES = Rates(gpu_hour=2.0, disk_hour=0.03, gb_in=0.002, gb_out=0.005)
BORN = 1_800_000_000.0
RENTED = Instance(
    id=7, offer_id=10101, label="hp-a", image="box", disk_gb=144.0, env={}, onstart="", runtype="ssh", api_key="k",
    rates=RATES, created_at=BORN, end_date=BORN + 30 * 86_400, intended=RUNNING, changed_at=BORN,
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.sqlite")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("state", "dollars"),
    [("loading", "0.030000"), ("running", "2.030000"), ("stopped", "0.030000"), ("offline", "0.000000")],
)
def test_an_hour_of_each_state(state: str, dollars: str) -> None:
    """Disk whenever the host is there, GPU while it runs, nothing offline; an open interval counts up to now."""
    for stop in (HOUR_S, None):
        assert decimal(cost([Interval(state, 0, stop, 2.0)], RATES, 0, 0, HOUR_S).total) == dollars


def test_bytes_cost_by_their_direction() -> None:
    """Into the box and out of it, each at its own price."""
    billed = cost([], RATES, 3 * GB, 7 * GB, 0.0)

    assert (decimal(billed.bwd), decimal(billed.bwu), decimal(billed.total)) == ("0.006000", "0.035000", "0.041000")


def test_a_life(ledger: Ledger) -> None:
    """Loading, running, stopped, running again and destroyed, with bytes: each second once, at its price."""
    instance = RENTED
    for after_s, change in (
        (0, {}),
        (60, {"status": RUNNING}),
        (60 + 1800, {"intended": STOPPED, "status": EXITED}),
        (60 + 1800 + 7200, {"intended": RUNNING, "status": RUNNING}),
        (60 + 1800 + 7200 + 900, {"destroyed_at": BORN + 9960}),
    ):
        instance = replace(instance, **change)
        ledger.save(instance, BORN + after_s)
    ledger.set_traffic(7, Traffic(GB, 2 * GB))

    expected = 9960 / 3600 * 0.03 + 2700 / 3600 * 2.0 + 0.002 + 0.010
    for now in (BORN + 9960, BORN + 1_000_000):
        assert decimal(ledger.cost(instance, now).total) == decimal(expected) == "1.595000"
        assert decimal(ledger.credit(now)) == decimal(OPENING_CREDIT - expected)


def test_destroyed_while_it_starts(ledger: Ledger) -> None:
    """Only its disk, and only until then."""
    ledger.save(RENTED, BORN)
    gone = replace(RENTED, destroyed_at=BORN + 36)
    ledger.save(gone, BORN + 36)

    assert decimal(ledger.cost(gone, BORN + 3600).total) == "0.000300"
    assert [(i.state, i.start, i.stop) for i in ledger.intervals(gone)] == [("loading", BORN, BORN + 36)]


def test_a_bid_that_changes(ledger: Ledger) -> None:
    """Each second pays the bid of its time."""
    running = replace(RENTED, status=RUNNING, is_bid=True)
    ledger.save(running, BORN)
    raised = replace(running, bids=((BORN + 1800, 3.0),))
    ledger.save(raised, BORN + 1800)

    assert decimal(ledger.cost(raised, BORN + 3600).gpu) == "2.500000"


def test_killed_and_opened_again(tmp_path: Path) -> None:
    """The ledger of a dead market goes on where it was: what ran has run on, and bills."""
    file = tmp_path / "ledger.sqlite"
    Ledger(file).save(replace(RENTED, status=RUNNING), BORN)

    again = Ledger(file)

    (instance,) = again.all()
    assert instance == replace(RENTED, status=RUNNING)
    assert decimal(again.cost(instance, BORN + 3600).total) == "2.030000"
    again.close()
