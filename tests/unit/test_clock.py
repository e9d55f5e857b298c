"""The daemon's own wall clock: what was lived through is never taken back."""

from __future__ import annotations

import pytest

from daemon.clock import AHEAD_MS, ManualClock, SteadyClock

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


@pytest.mark.parametrize(
    ("awake_s", "asleep_s", "slept"),
    [(2.0, 0.0, False), (2.0, 4.0, False), (2.0, 8 * HOUR_S, True), (11.0, 0.0, False), (13.0, 0.0, True)],
)
def test_a_sleep_is_more_time_outside_than_inside(awake_s: float, asleep_s: float, slept: bool) -> None:
    """So is a long time without a question; a little of either is an ordinary loaded computer."""
    world = ManualClock()
    clock = SteadyClock(world)
    began = clock.awake_since_ms()

    world.suspend(asleep_s)
    world.advance(awake_s)

    assert clock.awake_since_ms() == (clock.wall_ms() if slept else began)
    assert clock.awake_since_ms() == (clock.wall_ms() if slept else began)


@pytest.mark.parametrize("step_ms", [24 * HOUR_MS, -24 * HOUR_MS])
def test_a_clock_that_is_set_begins_every_patience_again(step_ms: int) -> None:
    """For how long somebody has looked is told by a clock; when it was set, nobody knows."""
    world = ManualClock()
    clock = SteadyClock(world)
    world.wall += 48 * HOUR_MS
    clock.awake_since_ms()
    world.advance(2.0)
    world.wall += step_ms

    assert clock.awake_since_ms() == clock.wall_ms()


def test_a_computer_that_begins_years_ago_goes_on_where_it_ended() -> None:
    """Its battery is empty; once the network tells it the time, it is believed."""
    world = ManualClock()
    ended = world.wall
    world.wall -= 6 * 365 * 24 * HOUR_MS
    clock = SteadyClock(world)

    clock.not_before(ended)
    world.advance(5.0)
    assert clock.wall_ms() == ended + 5000
    clock.not_ahead_of(ended + HOUR_MS)
    assert clock.wall_ms() == ended + 5000

    world.wall = ended + HOUR_MS
    assert clock.wall_ms() == ended + HOUR_MS


def test_a_clock_that_was_ahead_before_is_given_up_for_the_markets() -> None:
    """The process before this one had a wrong clock, which is right now: what the market shows decides."""
    world = ManualClock()
    clock = SteadyClock(world)
    clock.not_before(world.wall + 24 * HOUR_MS)
    assert clock.wall_ms() == world.wall + 24 * HOUR_MS

    clock.not_ahead_of(world.wall - AHEAD_MS // 2)

    assert clock.wall_ms() == world.wall


def test_the_markets_clock_takes_nothing_back_that_ours_shows_now() -> None:
    """A step ahead is believed as long as it lasts, whatever the market's answer says."""
    world = ManualClock()
    clock = SteadyClock(world)
    world.wall += HOUR_MS

    clock.not_ahead_of(world.wall - HOUR_MS)

    assert clock.wall_ms() == world.wall
