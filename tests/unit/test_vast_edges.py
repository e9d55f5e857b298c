"""Answers of the market that are easily taken for something they are not, and its clock against ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from daemon.clock import SystemClock
from daemon.domain.market import CreateRequest, OfferQuery
from daemon.errors import MarketRefused, MarketUnreachable, RateLimited
from daemon.market.vast import Vast
from daemon.settings import ApiKey

RENTAL = CreateRequest(1, "image", 10, "hp-i-j-n", "", {})
QUERY = OfferQuery(("H100 SXM",), 1, 70_000, 200, 3_000_000, 3600.0, verified=True)
DAY_S = 86_400


@asynccontextmanager
async def market(answer: Callable[[httpx.Request], httpx.Response], clock: SystemClock) -> AsyncIterator[Vast]:
    vast = Vast("https://market.example", ApiKey("k" * 64), clock, 1000.0, httpx.MockTransport(answer))
    yield vast
    await vast.aclose()


def says(status: int, body: Any, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, json=body, headers=headers)


async def test_a_machine_made_by_a_refused_create_is_known() -> None:
    """Whatever the status: what names a contract has made one, which bills."""
    async with market(says(429, {"detail": "too frequent", "new_contract": 77}), SystemClock()) as vast:
        reply = await vast.create(RENTAL)

    assert (reply.status, reply.instance_id) == (429, 77)


@pytest.mark.parametrize("nothing", [0, -1, "0", None, False])
async def test_no_contract_is_no_machine(nothing: Any) -> None:
    """Some answers name what they have not made as 0: an offer that is gone, not a machine of that number."""
    body = {"success": False, "error": "invalid_args", "msg": "no", "new_contract": nothing}
    async with market(says(400, body), SystemClock()) as vast:
        with pytest.raises(MarketRefused):
            await vast.create(RENTAL)


async def test_the_reset_of_a_quota_is_reckoned_by_the_markets_clock() -> None:
    """It is a time of that clock; ours, a day behind, would not search for a day."""
    clock = SystemClock()
    now = clock.wall_ms() // 1000 + DAY_S
    headers = {"Date": formatdate(now, usegmt=True), "X-RateLimit-Reset": str(now + 120)}
    refused = says(429, {"error": "search_quota_exceeded"}, **headers)
    async with market(refused, clock) as vast:
        with pytest.raises(RateLimited) as caught:
            await vast.search(QUERY)

    assert caught.value.retry_after_s == pytest.approx(120.0)


@pytest.mark.parametrize("ahead_s", [-10 * DAY_S, 0, 10 * DAY_S])
async def test_a_wrong_clock_hides_no_charge(ahead_s: int) -> None:
    """That no charge has the label of a create proves that nothing was rented: all are asked for that can have it."""
    clock = SystemClock()
    now = clock.wall_ms() // 1000 - ahead_s  # by the market's
    asked: list[dict[str, int]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.url.params["select_filters"])["day"])
        return httpx.Response(200, json={"results": []}, headers={"Date": formatdate(now, usegmt=True)})

    async with market(answer, clock) as vast:
        for _ in range(2):  # from the first answer on it knows
            await vast.charges(clock.wall_ms() - 1000)

    assert asked[-1]["gte"] < now < asked[-1]["lte"]


@pytest.mark.parametrize("charset", ["hex", "rot13", "base64", "idna", "undefined"])
async def test_a_strange_charset_is_an_answer_that_cannot_be_read(charset: str) -> None:
    """Python has codecs of these names that decode no text."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b'{"id": 1}\xff', headers={"Content-Type": f"text/html; charset={charset}"})

    async with market(answer, SystemClock()) as vast:
        listing = await vast.listing()

    assert not listing.trusted


async def test_offers_that_cannot_be_read_are_not_no_offers() -> None:
    """Were the market to rename a column, "nothing fits" would be a lie; one odd row among others is left out."""
    async with market(says(200, {"offers": [{"id": 1, "price": 1.0}, {"id": 2, "price": 2.0}]}), SystemClock()) as vast:
        with pytest.raises(MarketUnreachable, match="offers"):
            await vast.search(QUERY)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"success": False, "error": "route_not_found", "msg": "no such path"}),
        (404, {"success": False, "error": "user_not_found"}),
        (200, {"instances": {"id": 8, "label": "another's"}}),
    ],
)
async def test_what_is_not_said_of_this_machine_is_no_word_about_it(status: int, body: Any) -> None:
    """A path or a user that is not found, or another machine: the last witness that one is gone has not spoken."""
    async with market(says(status, body), SystemClock()) as vast:
        with pytest.raises(MarketUnreachable):
            await vast.show(7)
