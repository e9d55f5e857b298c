"""The limiter: intervals per kind of request, quiet after a refusal, destroys first."""

from __future__ import annotations

import asyncio

import pytest

from daemon.clock import ManualClock, SystemClock
from daemon.errors import RateLimited
from daemon.market.limiter import INTERVAL_S, LONGEST_QUIET_S, SLOW_REPLY_S, Call, Limiter


async def test_the_same_kind_waits_its_interval_and_another_kind_does_not():
    """A second create waits an interval from the reply to the first; a listing is free at once."""
    clock = ManualClock()
    limiter = Limiter(clock)

    async with limiter.turn(Call.CREATE):
        clock.advance(30.0)  # a slow reply

    assert limiter.wait_s(Call.CREATE) == INTERVAL_S[Call.CREATE]
    assert limiter.wait_s(Call.LIST) <= 0


async def test_a_request_without_its_reply_holds_the_next_for_a_moment_only():
    """It may still be on its way, but a reply that never comes does not block its kind."""
    clock = ManualClock()
    limiter = Limiter(clock)

    async with limiter.turn(Call.DESTROY):
        assert limiter.wait_s(Call.DESTROY) == INTERVAL_S[Call.DESTROY] + SLOW_REPLY_S
        clock.advance(INTERVAL_S[Call.DESTROY] + SLOW_REPLY_S)
        assert limiter.wait_s(Call.DESTROY) <= 0


async def test_a_refusal_quiets_the_key_but_not_a_destroy():
    """After a 429 nothing is sent for a while, except a destroy."""
    limiter = Limiter(ManualClock())

    limiter.refused(Call.LIST, 20.0)

    assert limiter.wait_s(Call.LIST) == limiter.wait_s(Call.SHOW) == 20.0
    assert limiter.wait_s(Call.DESTROY) <= 0


def test_a_spent_daily_quota_concerns_its_own_endpoint_only():
    """A wait of hours is one endpoint's quota; instances can still be listed."""
    limiter = Limiter(ManualClock())

    limiter.refused(Call.SEARCH, 8 * 3600.0)

    assert limiter.wait_s(Call.SEARCH) == 8 * 3600.0
    assert limiter.wait_s(Call.LIST) <= 0


def test_refusals_in_a_row_wait_longer_each_time():
    """Without a stated wait it doubles up to the cap, and an accepted request starts it over."""
    limiter = Limiter(ManualClock())

    waits = [limiter.refused(Call.LIST, None) for _ in range(8)]
    limiter.accepted(Call.LIST)

    assert waits[:3] == [2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_QUIET_S
    assert limiter.refused(Call.LIST, None) == waits[0]


async def test_a_waiting_destroy_goes_before_a_waiting_poll():
    """A poll that waited first is sent after the destroy that came later."""
    limiter = Limiter(SystemClock(), time_scale=30.0)
    sent: list[Call] = []

    async def send(call: Call) -> None:
        async with limiter.turn(call):
            sent.append(call)

    await send(Call.DESTROY)
    await send(Call.LIST)
    sent.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send(Call.LIST))
        tasks.create_task(send(Call.DESTROY))

    assert sent == [Call.DESTROY, Call.LIST]


@pytest.mark.parametrize("call", [Call.DESTROY, Call.LIST])
async def test_a_wait_of_hours_is_told_and_not_waited_for(call: Call):
    """Whoever asks again is told at once; above all no destroy keeps every other request waiting with it."""
    limiter = Limiter(ManualClock())
    limiter.refused(call, 3600.0)

    with pytest.raises(RateLimited) as caught:
        async with asyncio.timeout(1), limiter.turn(call):
            raise AssertionError("it was sent")

    assert caught.value.retry_after_s == 3600.0
    assert limiter.wait_s(Call.SHOW) <= 0


@pytest.mark.parametrize("stated", [0.0, 0.01])
async def test_a_refusal_shortens_no_interval(stated: float):
    """`Retry-After: 0`, or a reset that lies in the past by our clock, is no leave to hammer."""
    limiter = Limiter(ManualClock())
    async with limiter.turn(Call.CREATE):
        pass

    limiter.refused(Call.CREATE, stated)

    assert limiter.wait_s(Call.CREATE) >= INTERVAL_S[Call.CREATE]
