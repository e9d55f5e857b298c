"""The Vast client over real HTTP on loopback, against a market that answers what each test writes down."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.clock import SystemClock
from daemon.domain.market import CreateRequest, OfferQuery
from daemon.errors import (
    CredentialsRefused,
    HomeportError,
    MarketRefused,
    MarketUnreachable,
    NoCredit,
    OfferGone,
    RateLimited,
)
from daemon.market.permit import DestroyPermit, PermitKind
from daemon.market.vast import Vast
from daemon.settings import ApiKey

KEY = ApiKey("secret-key-0123", "a test")
TIME_SCALE = 500.0

ACCOUNT = ("GET", "/api/v0/users/current/")
LIST = ("GET", "/api/v1/instances/")
SEARCH = ("POST", "/api/v0/bundles/")
ASK = ("PUT", "/api/v0/asks/111/")
ONE = "/api/v0/instances/7/"

ME = {"id": 5, "email": "me@example.org", "credit": 12.5, "balance": 0}


@dataclass
class Said:
    """One reply of the scripted market; a `body` that is no text is sent as JSON."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class ScriptedMarket:
    """Answers each endpoint with its replies in turn, the last one for ever; a function is asked for its reply."""

    url: str = ""
    replies: dict[tuple[str, str], list[Said | Callable[[Seen], Said]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    seen: list[Seen] = field(default_factory=list)

    def answers(self, endpoint: tuple[str, str], *replies: Said | Callable[[Seen], Said]) -> None:
        self.replies[endpoint] = list(replies)

    def asked(self, endpoint: tuple[str, str]) -> list[Seen]:
        return [s for s in self.seen if (s.method, s.path) == endpoint]

    async def reply(self, request: Request) -> Response:
        text = await request.body()
        body = json.loads(text) if text else None
        seen = Seen(request.method, request.url.path, dict(request.query_params), body, dict(request.headers))
        self.seen.append(seen)
        replies = self.replies[seen.method, seen.path]
        said = replies.pop(0) if len(replies) > 1 else replies[0]
        said = said if isinstance(said, Said) else said(seen)
        text = said.body if isinstance(said.body, str) else json.dumps(said.body)
        return Response(text, said.status, said.headers)


@contextlib.asynccontextmanager
async def served(market: ScriptedMarket) -> AsyncIterator[ScriptedMarket]:
    methods = ["GET", "PUT", "POST", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", market.reply, methods=methods)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.001)
    market.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield market
    server.should_exit = True
    await serving


@pytest.fixture
async def market() -> AsyncIterator[ScriptedMarket]:
    async with served(ScriptedMarket()) as scripted:
        scripted.answers(ACCOUNT, Said(body=ME))
        yield scripted


@pytest.fixture
async def vast(market: ScriptedMarket) -> AsyncIterator[Vast]:
    client = Vast(market.url, KEY, SystemClock(), TIME_SCALE)
    yield client
    await client.aclose()


def rental() -> CreateRequest:
    return CreateRequest(111, "an/image:1", 60, "hp-i-j-n", "touch ~/.no_auto_tmux", {"A": "B"})


def permit() -> DestroyPermit:
    return DestroyPermit(7, PermitKind.UNUSED, None, operation_id=1)


def page(*ids: Any, token: str | None = None) -> Said:
    return Said(body={"success": True, "instances": [{"id": i} for i in ids], "next_token": token})


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


BAD_KEY = Said(404, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
RETIRED = Said(410, {"success": False, "error": "deprecated_endpoint", "msg": "use another"})
HTML = Said(200, "<html>maintenance</html>")


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


# Renting


async def test_a_create_is_sent_once_with_what_makes_it_safe(market, vast):
    """The body names label, both SSH routes and cancel_unavail; the reply's contract is the instance id."""
    market.answers(ASK, Said(body={"success": True, "new_contract": 4242, "instance_api_key": "scoped"}))

    reply = await vast.create(rental())

    assert reply.instance_id == 4242
    (sent,) = market.asked(ASK)
    expected = {"client_id": "me", "image": "an/image:1", "disk": 60.0, "label": "hp-i-j-n", "env": {"A": "B"}}
    expected |= {"runtype": "ssh_direc ssh_proxy", "cancel_unavail": True, "price": None}
    assert sent.body | expected == sent.body
    assert sent.headers["authorization"] == "Bearer secret-key-0123"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (
            Said(404, {"error": "invalid_args", "msg": "error 404/3603: no_such_ask Instance type by id 1 ..."}),
            OfferGone,
        ),
        (Said(410, {"error": "no_such_ask", "msg": "error 410/3907: no longer available."}), OfferGone),
        (Said(400, {"error": "invalid_args", "msg": "the offer is no longer available"}), OfferGone),
        (Said(200, {"success": False, "error": "no_such_ask"}), OfferGone),
        (Said(400, {"success": False, "error": "insufficient_credit"}), NoCredit),
        (Said(411, {"msg": "Insufficient credit"}), NoCredit),
        (Said(403, {"error": "spend_rate_limit"}), NoCredit),
        (Said(400, {"error": "missing_billing"}), NoCredit),
        (Said(400, {"error": "invalid_args", "msg": "error 400/3467"}), MarketRefused),
        (Said(403, {"error": "invalid_args", "msg": "error 403/3586"}), MarketRefused),
        (Said(200, {"success": False, "msg": "no"}), MarketRefused),
        (BAD_KEY, CredentialsRefused),
        (Said(404, {"success": False, "msg": "Session expired. Please log in again."}), CredentialsRefused),
        (Said(401, {"msg": "Two Factor Authentication needed"}), CredentialsRefused),
        (Said(404, {"msg": "?"}), MarketUnreachable),
        (Said(404, "<html>not found</html>"), MarketUnreachable),
        (Said(500, {"success": False, "msg": "no_such_ask"}), MarketUnreachable),
        (Said(502, "bad gateway"), MarketUnreachable),
        (Said(200, "<html>ok</html>"), MarketUnreachable),
        (Said(200, {"success": True}), MarketUnreachable),
        (Said(307, "", {"location": "/api/v0/asks/112/"}), MarketUnreachable),
        (Said(429, "API requests too frequent"), RateLimited),
    ],
)
async def test_a_create_that_fails_says_whether_something_may_exist(market, vast, said, error):
    """Each refusal is its own class, each doubt is MarketUnreachable, and nothing is sent a second time."""
    market.answers(ASK, said)

    with pytest.raises(HomeportError) as caught:
        await vast.create(rental())

    assert type(caught.value) is error
    assert len(market.asked(ASK)) == 1
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_error_that_carries_a_contract_is_a_rental(market, vast, status):
    """A bid below the floor is refused and yet leaves an instance: its id must not be lost."""
    market.answers(ASK, Said(status, {"success": False, "error": "invalid_price", "new_contract": 99}))

    reply = await vast.create(rental())

    assert (reply.status, reply.instance_id) == (status, 99)
    assert "invalid_price" in reply.body


async def test_a_connection_that_dies_after_a_create_leaves_it_unknown():
    """The market hears one request and hangs up: MarketUnreachable, not definite, not repeated."""
    heard: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    vast = Vast(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY, SystemClock(), TIME_SCALE)

    with pytest.raises(MarketUnreachable) as caught:
        await vast.create(rental())
    await vast.aclose()
    server.close()

    assert not caught.value.definite
    assert len(heard) == 1


async def test_a_rate_limit_says_how_long(market, vast):
    """The wait comes from the header or from the body."""
    market.answers(ASK, Said(429, "too frequent", {"Retry-After": "0.01"}), Said(429, {"retry_after": 90}))

    waits = []
    for _ in range(2):
        with pytest.raises(RateLimited) as caught:
            await vast.create(rental())
        waits.append(caught.value.retry_after_s)

    assert waits == [0.01, 90.0]


# One instance


@pytest.mark.parametrize(
    "said", [Said(body={"instances": None}), Said(404, {"success": False, "error": "no_such_instance", "msg": "..."})]
)
async def test_an_instance_is_gone_only_by_the_markets_own_words(market, vast, said):
    """`instances: null` and the slug no_such_instance mean that there is none."""
    market.answers(("GET", ONE), said)

    assert await vast.show(7) is None


@pytest.mark.parametrize(
    ("said", "error"),
    [(Said(404, {"msg": "?"}), MarketUnreachable), (BAD_KEY, CredentialsRefused), (Said(body={}), MarketUnreachable)],
)
async def test_a_doubtful_answer_never_means_gone(market, vast, said, error):
    """A bare 404, a bad key or a reply without the field is an error, not an absence."""
    market.answers(("GET", ONE), said)

    with pytest.raises(error):
        await vast.show(7)


async def test_a_shown_instance_is_read(market, vast):
    """Show returns the instance with its SSH addresses."""
    row = {
        "id": 7,
        "actual_status": "running",
        "public_ipaddr": "1.2.3.4 ",
        "ports": {"22/tcp": [{"HostPort": "40022"}]},
    }
    market.answers(("GET", ONE), Said(body={"instances": row}))

    instance = await vast.show(7)

    assert instance.is_running
    assert instance.direct == ("1.2.3.4", 40022)
    assert market.asked(("GET", ONE))[0].query == {"owner": "me"}


async def test_a_start_that_waits_for_its_gpu_says_so(market, vast):
    """The market's success that is none: it will bill whenever the GPU is free."""
    queued = "Required resources are currently unavailable, state change queued."
    market.answers(("PUT", ONE), Said(body={"success": True, "msg": queued}), Said(body={"success": True}))

    first, second = await vast.start(7), await vast.start(7)

    assert (first.queued, second.queued) == (True, False)
    assert market.asked(("PUT", ONE))[0].body == {"state": "running"}


async def test_stop_and_label_send_one_change_each(market, vast):
    """Stop asks for the state, label for the text."""
    market.answers(("PUT", ONE), Said(body={"success": True}))

    await vast.stop(7)
    await vast.label(7, "hp-a-b-c")

    assert [s.body for s in market.asked(("PUT", ONE))] == [{"state": "stopped"}, {"label": "hp-a-b-c"}]


async def test_attaching_a_key_twice_is_attached(market, vast):
    """The market's complaint about a duplicate is a success; any other refusal is not."""
    ssh = ("POST", ONE + "ssh/")
    market.answers(
        ssh, Said(400, {"success": False, "msg": "duplicate key"}), Said(400, {"success": False, "msg": "bad"})
    )

    reply = await vast.attach_key(7, "ssh-ed25519 AAAA us")

    assert reply.status == 400
    assert market.asked(ssh)[0].body == {"ssh_key": "ssh-ed25519 AAAA us"}
    with pytest.raises(MarketRefused):
        await vast.attach_key(7, "nonsense")


async def test_a_destroy_is_one_delete(market, vast):
    """Accepted is returned verbatim; so is "no such instance", which the caller still has to confirm."""
    market.answers(("DELETE", ONE), Said(body={"success": True}), Said(404, {"error": "no_such_instance"}))

    replies = [await vast.destroy(permit()), await vast.destroy(permit())]

    assert [r.status for r in replies] == [200, 404]
    assert [s.body for s in market.asked(("DELETE", ONE))] == [{}, {}]


@pytest.mark.parametrize(("said", "error"), [(BAD_KEY, CredentialsRefused), (Said(404, "gone"), MarketUnreachable)])
async def test_a_destroy_under_a_bad_key_is_not_gone(market, vast, said, error):
    """A 404 that does not name the instance is no success."""
    market.answers(("DELETE", ONE), said)

    with pytest.raises(error):
        await vast.destroy(permit())


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
