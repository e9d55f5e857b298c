"""A wall clock that was set back: what was stored in its future comes back, and the rest stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert, select
from store import JOB, NOW, add_job, add_lease, opened

from daemon.app import take_leadership
from daemon.clock import ManualClock, SteadyClock
from daemon.control.snapshot import Memory
from daemon.domain.holds import HoldReason
from daemon.store import clock_step, jobs, leader, leases, schema

HOUR_MS = 3_600_000


def test_what_lies_in_the_future_comes_back_and_keeps_its_order(tmp_path: Path) -> None:
    """Recorded with the clock a day ahead: the newest is now, what came a minute before it is a minute ago."""
    database, ahead = opened(tmp_path), NOW + 24 * HOUR_MS
    with database.write() as c:
        add_job(c)
        lease = add_lease(c)
        leases.change(c, lease, observed_ms=ahead - 60_000, last_seen=NOW - 5)
        jobs.hold(c, jobs.get(c, JOB), HoldReason.BY_PERSON, "held by you", ahead, database.epoch)

        assert clock_step.undo(c, NOW) == 24 * HOUR_MS

        assert jobs.get(c, JOB).hold_since == NOW
        assert leases.get(c, lease).observed_ms == NOW - 60_000
        assert leases.get(c, lease).last_seen == NOW - 5


def test_a_pass_brings_back_what_lies_ahead(tmp_path: Path) -> None:
    """Wherever the clock was set back, the next pass finds out."""
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
        lease = add_lease(c)
        leases.change(c, lease, observed_ms=NOW + HOUR_MS)

        leader.renew(c, NOW)

        assert leases.get(c, lease).observed_ms == NOW


def test_a_new_process_goes_on_at_the_time_of_the_one_before(tmp_path: Path) -> None:
    """The clock shows an hour less than was lived through: what was stored is no future."""
    database, world = opened(tmp_path), ManualClock(wall=NOW - HOUR_MS)
    clock = SteadyClock(world)

    take_leadership(database, "machine-1", clock)

    assert clock.wall_ms() == NOW
    with database.read() as c:
        assert clock_step.newest(c) == NOW


def test_a_moment_is_no_step(tmp_path: Path) -> None:
    """Two writers may store their times in another order than they took them."""
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
        lease = add_lease(c)
        leases.change(c, lease, observed_ms=NOW + clock_step.LEAST_MS - 1)

        assert clock_step.undo(c, NOW) == 0

        assert leases.get(c, lease).observed_ms == NOW + clock_step.LEAST_MS - 1


@pytest.mark.parametrize("time", clock_step.TIMES, ids=str)
def test_each_of_the_times(tmp_path: Path, time: schema.Column[int]) -> None:
    """Each column of the table is found when it alone lies ahead, and brought back."""
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
        add_lease(c)
        c.execute(insert(schema.box_reports).values(job_id=JOB, attempt=1))
        c.execute(insert(schema.bad_machines).values(machine_id=1, reason="x", at=NOW))
        assert c.execute(time.table.update().values({time: NOW + HOUR_MS})).rowcount > 0

        assert clock_step.undo(c, NOW) == HOUR_MS

        assert set(c.execute(select(time)).scalars()) == {NOW}


def test_what_a_driver_remembers_of_a_time_ahead() -> None:
    """A patience that began in it begins now; one that began before goes on."""
    memory = Memory(link_down_since_ms=NOW + HOUR_MS, asked_market_ms=NOW - 1)

    memory.not_after(NOW)

    assert (memory.link_down_since_ms, memory.asked_market_ms, memory.nothing_fits_since_ms) == (NOW, NOW - 1, None)
