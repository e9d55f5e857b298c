"""Replies that lie or break although the market's ledger is sound: refusals, listings, destroys, outages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sandboxes import FOR_EVER, OFFER, SandboxProcess, until

from daemon.sandbox.shapes import SHAPES
from daemon.sandbox.words import REFUSALS

CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
LISTING = "/api/v1/instances/"


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def test_every_refusal_in_the_markets_words(market: SandboxProcess) -> None:
    """Each `why` gives its status, body and headers, and nothing is rented."""
    for why, made in REFUSALS.items():
        await market.fault("refusal", match=CREATE, params={"why": why})

        reply = await market.create()

        expected = made()
        assert (reply.status_code, reply.content) == (expected.status, expected.body), why
        assert {name.decode(): value.decode() for name, value in expected.headers}.items() <= reply.headers.items()
    assert await market.listed() == []


async def test_a_429_can_say_how_long_to_wait(market: SandboxProcess) -> None:
    """In a header, in the body, as the end of the daily quota, or not at all."""
    told = []
    for why in ("too_frequent", "too_frequent_json", "retry_after", "search_quota"):
        await market.fault("refusal", match={"method": "GET", "path": LISTING}, params={"why": why})
        told.append(await market.http.get(LISTING))

    assert {reply.status_code for reply in told} == {429}
    assert told[0].headers["content-type"] == "text/plain" and "retry-after" not in told[0].headers
    assert told[1].json()["retry_after"] == 1
    assert told[2].headers["retry-after"] == "1"
    assert float(told[3].headers["x-ratelimit-reset"]) > time.time()


async def test_a_bad_key_has_been_seen_as_401_too(market: SandboxProcess) -> None:
    """The status is a parameter; the words are the same."""
    await market.fault("bad_key", params={"status": 401})

    reply = await market.http.get(LISTING)

    assert (reply.status_code, reply.json()["error"]) == (401, "auth_error")


async def test_an_error_may_carry_a_contract(market: SandboxProcess) -> None:
    """The body of the failure names an instance that exists and bills."""
    await market.fault("error_with_contract")

    reply = await market.create()

    assert reply.status_code == 400 and reply.json()["success"] is False
    assert await market.listed() == [reply.json()["new_contract"]]


async def test_a_choice_that_there_is_not_is_refused(market: SandboxProcess) -> None:
    """An order cannot name a refusal, a shape or a door that the tables do not have."""
    for fault, params in (("refusal", {"why": "mood"}), ("listing", {"shape": "round"}), ("ssh_mute", {"door": "cat"})):
        reply = await market.http.post("/sandbox/faults", json={"fault": fault, "params": params})
        assert reply.status_code == 400, fault


async def test_a_market_that_is_out(market: SandboxProcess) -> None:
    """Connections are refused for the time ordered; then the market is there again, with its port and its instances."""
    instance = await market.rent()
    await market.fault("unreachable", params={"seconds": 4.0})  # nobody can end it: there is nobody to ask

    async def refused() -> bool:
        try:
            async with httpx.AsyncClient() as other:
                await other.get(market.url)
        except httpx.ConnectError:
            return True
        except httpx.TransportError:
            return False  # dropped, not refused yet
        return False

    async def back() -> bool:
        try:
            return await market.listed() == [instance]
        except httpx.TransportError:
            return False

    await until(refused)
    await until(back)


# Listings

READ: dict[str, Any] = {  # what a careful reader finds in each shape of a list of two
    "no_body": lambda reply: reply.content == b"",
    "bare_list": lambda reply: isinstance(reply.json(), list) and len(reply.json()) == 2,
    "empty_array": lambda reply: reply.json() == [],
    "empty": lambda reply: reply.json()["success"] and reply.json()["instances"] == [],
    "null": lambda reply: reply.json()["instances"] is None,
    "no_rows": lambda reply: reply.json()["success"] and "instances" not in reply.json(),
    "unsuccessful": lambda reply: reply.json()["success"] is False and reply.json()["instances"] == [],
    "gone": lambda reply: reply.status_code == 410,
    "no_such_key": lambda reply: reply.status_code == 404 and reply.json()["error"] == "auth_error",
    "one_row_missing": lambda reply: len(reply.json()["instances"]) == 1,
    "bad_token": lambda reply: isinstance(reply.json()["next_token"], str),
    "no_next_page": lambda reply: reply.json()["next_token"] is None and len(reply.json()["instances"]) == 1,
    "ids_as_text": lambda reply: {type(row["id"]) for row in reply.json()["instances"]} == {str},
    "no_ids": lambda reply: {row["id"] for row in reply.json()["instances"]} == {None},
    "label_null": lambda reply: {row["label"] for row in reply.json()["instances"]} == {None},
    "unheard_of_status": lambda reply: {r["actual_status"] for r in reply.json()["instances"]} == {"defragmenting"},
    "a_row_is_null": lambda reply: reply.json()["instances"][-1] is None,
}


async def test_every_shape_of_a_listing(market: SandboxProcess) -> None:
    """Each shape is what its name says, once; the next listing is whole again."""
    assert READ.keys() | {"truncated"} == SHAPES.keys()
    rented = [await market.rent(), await market.rent(10201)]
    for shape, seen in READ.items():
        await market.fault("listing", params={"shape": shape})

        reply = await market.http.get(LISTING, params={"limit": 1} if shape == "no_next_page" else {})

        assert seen(reply), (shape, reply.text)
        assert await market.listed() == rented


async def test_a_second_page_that_does_not_come(market: SandboxProcess) -> None:
    """The token of the first page leads nowhere: 400."""
    await market.rent()
    await market.fault("listing", params={"shape": "bad_token"})
    token = (await market.http.get(LISTING)).json()["next_token"]

    assert (await market.http.get(LISTING, params={"after_token": token})).status_code == 400


async def test_counts_come_with_the_page(market: SandboxProcess) -> None:
    """A page says how many rows there are in all, and how many carry each label."""
    await market.rent(label="hp-a")
    await market.rent(10201, label="hp-a")

    reply = await market.http.get(LISTING, params={"limit": 1})

    assert reply.headers["content-type"] == "application/json"
    assert (reply.json()["total_instances"], reply.json()["label_counts"]) == (2, {"hp-a": 2})


# Renting and returning


async def test_an_offer_that_cannot_start(market: SandboxProcess) -> None:
    """410 with cancel_unavail and nothing is rented; without it a stopped instance, which bills its disk."""
    await market.fault("cannot_start", count=2)

    refused = await market.create()
    assert (refused.status_code, refused.json()["error"]) == (410, "no_such_ask")
    assert await market.listed() == []
    rented = (await market.create(cancel_unavail=False)).json()["new_contract"]

    await market.reaches(rented, "exited")


async def test_offers_get_other_ids(market: SandboxProcess) -> None:
    """After a relisting the old id is unknown and the new one rents the same machine."""
    before = {offer["machine_id"]: offer["id"] for offer in await market.offers(num_gpus={"eq": 1})}
    await market.fault("offers_relisted")
    after = {offer["machine_id"]: offer["id"] for offer in await market.offers(num_gpus={"eq": 1})}

    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())
    assert (await market.create(before[101])).status_code == 404
    row = await market.show((await market.create(after[101])).json()["new_contract"])
    assert row is not None and row["machine_id"] == 101


async def test_a_destroyed_instance_that_is_listed_on(market: SandboxProcess) -> None:
    """Accepted and over for the ledger, listed for the time ordered, then gone."""
    instance = await market.rent()
    await market.fault("destroy_lingers", params={"seconds": 1.5})
    began = time.monotonic()

    assert (await market.destroy(instance)).json()["success"]
    assert (await market.ledger(instance))["destroyed_at"] is not None
    await market.gone(instance)

    assert time.monotonic() - began >= 1.5


async def test_a_destroy_that_does_nothing(market: SandboxProcess) -> None:
    """200, and the instance lives and bills; the next destroy is a real one."""
    instance = await market.rent()
    await market.fault("destroy_ignored")

    assert (await market.destroy(instance)).json()["success"]
    assert await market.listed() == [instance]
    assert (await market.ledger(instance))["destroyed_at"] is None
    assert (await market.journal())[2]["effect"] == "none"
    await market.destroy(instance)

    await market.gone(instance)


async def test_a_destroy_that_is_undone(market: SandboxProcess) -> None:
    """200, gone from list and show, back later; the ledger knows that it never stopped billing."""
    instance = await market.rent()
    await market.fault("destroy_undone", params={"seconds": FOR_EVER})

    assert (await market.destroy(instance)).json()["success"]
    assert await market.listed() == [] and await market.show(instance) is None
    await market.fault("vanish", params={"instance": instance, "seconds": 0.5})

    async def back() -> bool:
        return await market.listed() == [instance]

    await until(back)
    account = await market.ledger(instance)
    assert account["destroyed_at"] is None and account["intervals"][-1]["to"] is None


async def test_bulk_verbs(market: SandboxProcess) -> None:
    """Start, stop and destroy take lists of ids."""
    rented = [await market.rent(), await market.rent(10201)]
    for instance in rented:
        await market.reaches(instance, "running")

    assert (await market.http.put("/api/v0/instances/", json={"state": "stopped", "ids": rented})).json()["success"]
    for instance in rented:
        await market.reaches(instance, "exited")
    await market.http.request("DELETE", "/api/v0/instances/", json={"instance_ids": rented})
    for instance in rented:
        await market.gone(instance)


async def test_paths_with_and_without_a_slash(market: SandboxProcess) -> None:
    """Both forms of a path are one; the names of GPUs need no key."""
    for path in ("/api/v0/users/current", "/api/v0/users/current/"):
        assert (await market.http.get(path)).json()["username"] == "sandbox"
    async with httpx.AsyncClient(base_url=market.url) as stranger:
        assert "H100 SXM" in (await stranger.get("/api/v0/gpu_names/unique/")).json()["gpu_names"]
        assert (await stranger.get("/api/v0/users/current")).status_code == 403


async def test_limits_are_on_unless_switched_off(tmp_path: Path) -> None:
    """A second create at once and the eleventh search of a minute meet the numbers of the market's documentation."""
    market = SandboxProcess(tmp_path / "limited", "--image", "box=/usr/bin/python3", time_scale=1.0)
    try:
        assert (await market.create()).status_code == 200
        again = await market.create(OFFER + 100)
        await asyncio.sleep(4.5)
        punished = await market.create(OFFER + 100)
        searches = [await market.http.post("/api/v0/bundles/", json={}) for _ in range(11)]

        assert (again.status_code, again.text) == (429, "API requests too frequent: endpoint threshold=4.5")
        assert punished.status_code == 429  # whoever asked too early waits for 12 seconds
        assert [reply.status_code for reply in searches] == [200] * 10 + [429]
    finally:
        await market.end()
