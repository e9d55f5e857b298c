"""What the Vast client changes at the market: each call is sent once, and says what may exist after it failed."""

from __future__ import annotations

import asyncio

import pytest
from scripted_vast import ASK, BAD_KEY, KEY, ONE, TIME_SCALE, Said

from daemon.clock import SystemClock
from daemon.domain.market import CreateRequest
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


def rental() -> CreateRequest:
    return CreateRequest(111, "an/image:1", 60, "hp-i-j-n", "touch ~/.no_auto_tmux", {"A": "B"})


def permit() -> DestroyPermit:
    return DestroyPermit(7, PermitKind.UNUSED, None, operation_id=1)


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


WAITS = "Required resources are currently unavailable, state change queued."


@pytest.mark.parametrize(
    ("body", "queued"),
    [
        ({"success": False, "error": "resources_unavailable", "msg": WAITS}, True),
        ({"success": False, "msg": WAITS}, True),
        ({"success": True, "msg": WAITS}, True),
        ({"success": True}, False),
    ],
)
async def test_a_start_that_waits_for_its_gpu_says_so(market, vast, body, queued):
    """Neither a success nor a refusal, whichever of them it calls itself: it will bill whenever the GPU is free."""
    market.answers(("PUT", ONE), Said(body=body))

    reply = await vast.start(7)

    assert reply.queued == queued
    assert market.asked(("PUT", ONE))[0].body == {"state": "running"}


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (Said(body={"success": False, "error": "resources_unavailable", "msg": "none free"}), MarketRefused),
        (Said(400, {"success": False, "msg": WAITS}), MarketRefused),
        (Said(502, {"success": False, "msg": WAITS}), MarketUnreachable),
    ],
)
async def test_a_start_that_was_refused_does_not_wait(market, vast, said, error):
    """Only status 200 and the market's own words mean that the start will come true by itself."""
    market.answers(("PUT", ONE), said)

    with pytest.raises(error):
        await vast.start(7)


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
