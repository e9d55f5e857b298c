"""The daemon's own wall clock: what was lived through is never taken back."""

from __future__ import annotations

from daemon.clock import ManualClock, SteadyClock

HOUR_S, HOUR_MS = 3600.0, 3_600_000


def test_a_wall_clock_set_back_goes_on() -> None:
    """Set back by an hour, awake and asleep time pass as before: a hold of one hour ends after one hour."""
    world = ManualClock()
    clock = SteadyClock(world)
    began = clock.wall_ms()

    world.advance(10.0)
    world.wall -= HOUR_MS
    world.suspend(HOUR_S - 10.0)

    assert clock.wall_ms() == began + HOUR_MS


def test_a_wall_clock_set_ahead_is_believed_while_it_lasts() -> None:
    """Time may have passed that no clock here saw; set right again, it is as if nothing had been."""
    world = ManualClock()
    clock = SteadyClock(world)
    began = clock.wall_ms()

    world.wall += HOUR_MS
    ahead = clock.wall_ms()
    world.wall -= HOUR_MS
    world.advance(1.0)

    assert ahead == began + HOUR_MS
    assert clock.wall_ms() == began + 1000
