"""What the Vast client reads, over real HTTP on loopback: listings, accounts, logs, charges, offers."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_vast import (
    ACCOUNT,
    BAD_KEY,
    HTML,
    KEY,
    LIST,
    ME,
    RETIRED,
    SEARCH,
    TIME_SCALE,
    Said,
    ScriptedMarket,
    Seen,
    page,
    served,
)

from daemon.clock import SystemClock
from daemon.domain.market import OfferQuery
from daemon.errors import (
    HomeportError,
    MarketUnreachable,
)
from daemon.market.vast import Vast

# The list


async def test_a_listing_joins_every_page(market, vast):
    """Pages are followed by their token, and the account probe of the same pass gives the credit."""
    market.answers(LIST, page(1, 2, token="t1"), page(3, token="t2"), page(4))

    listing = await vast.listing()

    assert listing.trusted
    assert [i.id for i in listing.instances] == [1, 2, 3, 4]
    assert listing.credit == 12_500_000
    assert [s.query.get("after_token") for s in market.asked(LIST)] == [None, "t1", "t2"]
    assert {s.query["limit"] for s in market.asked(LIST)} == {"25"}


@pytest.mark.parametrize(
    ("endpoint", "replies"),
    [
        pytest.param(ACCOUNT, [BAD_KEY], id="bad key"),
        pytest.param(ACCOUNT, [Said(body={"id": 5})], id="account without credit"),
        pytest.param(LIST, [Said(404, {"success": False, "msg": "nothing here"})], id="bare 404"),
        pytest.param(LIST, [RETIRED], id="retired endpoint"),
        pytest.param(LIST, [HTML], id="HTML with status 200"),
        pytest.param(LIST, [Said(body=[])], id="a list instead of an object"),
        pytest.param(LIST, [Said(body={"success": True, "instances": None})], id="instances null"),
        pytest.param(LIST, [Said(body={"success": False, "instances": []})], id="success false"),
        pytest.param(LIST, [page(1, "2")], id="an id that is text"),
        pytest.param(LIST, [page(1, None)], id="an id that is null"),
        pytest.param(LIST, [page(1, token="t"), Said(502, "bad gateway")], id="second page missing"),
        pytest.param(LIST, [Said(302, {}, {"location": "/elsewhere"})], id="redirect"),
        pytest.param(LIST, [Said(429, "API requests too frequent", {"retry-after": "3600"})], id="rate limited"),
    ],
)
async def test_a_listing_that_is_not_whole_is_not_trusted(market, vast, endpoint, replies):
    """Anything but a full, well-formed list under a proven key is returned untrusted, with the problem named."""
    market.answers(LIST, page(1))
    market.answers(endpoint, *replies)

    listing = await vast.listing()

    assert not listing.trusted
    assert listing.instances == ()
    assert listing.problem


async def test_nobody_listening_gives_an_untrusted_listing(market):
    """A refused connection is no evidence either."""
    vast = Vast("http://127.0.0.1:1", KEY, SystemClock(), TIME_SCALE)

    listing = await vast.listing()
    await vast.aclose()

    assert not listing.trusted
    assert "ConnectError" in listing.problem


# Reading


async def test_reads_are_repeated(market, vast):
    """Two bad gateways and then an answer: the caller sees the answer."""
    market.answers(ACCOUNT, Said(502, "bad"), Said(503, "bad"), Said(body=ME))

    account = await vast.account()

    assert account.credit == 12_500_000
    assert len(market.asked(ACCOUNT)) == 3


async def test_the_key_does_not_follow_a_redirect(market):
    """A redirect to another host is an error there and then; the other host hears nothing."""
    async with served(ScriptedMarket()) as other:
        other.answers(ACCOUNT, Said(body=ME))
        market.answers(ACCOUNT, Said(308, "", {"location": other.url + ACCOUNT[1]}))
        vast = Vast(market.url, KEY, SystemClock(), TIME_SCALE)

        with pytest.raises(MarketUnreachable):
            await vast.account()
        await vast.aclose()

        assert other.seen == []


def test_the_key_is_not_sent_in_the_clear():
    """An http address that is not this computer is refused before anything is sent."""
    with pytest.raises(HomeportError, match="unencrypted"):
        Vast("http://market.example.org", KEY, SystemClock())


async def test_logs_come_from_their_store_without_the_key(market, vast):
    """The store is asked until it has them, and never sees the key."""
    store = ("GET", "/store/7.log")
    path = ("PUT", "/api/v0/instances/request_logs/7/")
    market.answers(path, Said(body={"success": True, "result_url": market.url + store[1]}))
    market.answers(store, Said(403, "not yet"), Said(404, "not yet"), Said(200, "line 1\nline 2\n"))

    text = await vast.logs(7, 50)

    assert text == "line 1\nline 2\n"
    assert market.asked(path)[0].body == {"tail": "50"}
    assert all("authorization" not in s.headers for s in market.asked(store))


async def test_charges_keep_instance_and_label(market, vast):
    """Charges are read over all pages, with the label that survives the instance."""
    row = {"start": 100, "end": 200.5, "source": "instance-7", "amount": "1.25", "metadata": {"label": "hp-i-j-n"}}
    market.answers(
        ("GET", "/api/v0/charges/"),
        Said(body={"results": [row], "next_token": "t"}),
        Said(body={"results": [row | {"source": "volume-1", "metadata": None}], "next_token": None}),
    )

    first, second = await vast.charges(0)

    assert (first.instance_id, first.label, first.amount, first.end_ms) == (7, "hp-i-j-n", 1_250_000, 200_500)
    assert (second.instance_id, second.label) == (None, None)


# Searching


QUERY = OfferQuery(("H100 SXM",), 1, 70_000, 200, 3_000_000, 3600.0, verified=True)


def offer(number: int, **changes: Any) -> dict[str, Any]:
    good = {"id": number, "machine_id": number, "host_id": 1, "gpu_name": "H100 SXM", "num_gpus": 1, "gpu_ram": 81559}
    good |= {
        "dph_total": 1 + number // 3 * 0.001,
        "disk_space": 500.0,
        "reliability2": 0.99,
        "verification": "verified",
    }
    good |= {"rentable": True, "direct_port_count": 5, "cuda_max_good": 12.8, "duration": 1e6}
    return good | changes


async def test_a_search_goes_past_the_limit_of_64(market, vast):
    """150 offers, several at one price, are all found by raising the lowest price."""
    everything = [offer(i) for i in range(1, 151)]

    def cheapest(seen: Seen) -> Said:
        floor = seen.body["dph_total"].get("gte", 0)
        return Said(body={"offers": [o for o in everything if o["dph_total"] >= floor][:64]})

    market.answers(SEARCH, cheapest)

    found = await vast.search(QUERY)

    assert [o.id for o in found] == list(range(1, 151))
    sent = market.asked(SEARCH)[0].body
    assert (sent["allocated_storage"], sent["limit"], sent["type"]) == (200.0, 64, "on-demand")


LIES = [
    {"dph_total": 3.01}, {"gpu_ram": 40_000}, {"disk_space": 100}, {"verification": "unverified"},
    {"reliability2": 0.5}, {"direct_port_count": 0}, {"duration": 60}, {"gpu_name": "H100 PCIE"}, {"num_gpus": 2},
    {"rented": True},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: next(iter(lie)))
async def test_filters_are_checked_again_here(market, vast, lie):
    """An offer that the market returns against its own filter is left out."""
    market.answers(SEARCH, Said(body={"offers": [offer(1), offer(2, **lie)]}))

    assert [o.id for o in await vast.search(QUERY)] == [1]
