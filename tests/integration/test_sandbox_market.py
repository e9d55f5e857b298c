"""The sandbox's market over real HTTP: offers, rentals, listings, keys, money, limits."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sandboxes import OFFER, SandboxProcess, until

SSH = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ0bm90YXJlYWxrZXlidXRsb25nZW5vdWdoISE= test"


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


# Offers


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"gpu_name": {"eq": "H100 SXM"}, "num_gpus": {"eq": "8"}}, {10108, 10208, 10408}),
        ({"gpu_name": {"eq": "H100 SXM"}, "num_gpus": {"eq": "8"}, "verified": {"eq": True}}, {10108, 10208}),
        ({"gpu_name": {"in": ["L40", "L40S"]}, "num_gpus": {"lt": 2}}, {11401, 11501}),
        ({"gpu_ram": {"gte": 140000.0}, "num_gpus": {"gt": "4"}}, {10908}),
        ({"datacenter": {"eq": True}, "num_gpus": {"eq": 8}}, {10108, 10908}),
        ({"reliability": {"lt": "0.9"}, "num_gpus": {"eq": 1}}, {10401, 12201}),
        ({"gpu_name": {"notin": ["H200"]}, "gpu_ram": {"gt": 100000}, "num_gpus": {"neq": 1}}, {11002, 11004}),
        ({"id": {"eq": OFFER}}, set()),
        ({"ask_contract_id": {"eq": OFFER}}, {OFFER}),
        ({"no_such_column": {"eq": 1}}, set()),
    ],
)  # fmt: skip
async def test_search_honours_every_operator(market: SandboxProcess, query: dict[str, Any], expected: set[int]) -> None:
    """A search gives exactly the offers its conditions name, numbers as strings included."""
    assert {offer["id"] for offer in await market.offers(**query)} == expected


async def test_search_orders_limits_and_caps(market: SandboxProcess) -> None:
    """Order and limit are honoured, and no limit gives more than 64 offers."""
    cheapest = await market.offers(order=[["dph_total", "asc"]], limit=3)
    everything = await market.offers(limit=1000)

    assert len(cheapest) == 3
    assert [o["dph_total"] for o in cheapest] == sorted(o["dph_total"] for o in everything)[:3]
    assert len(everything) == 64


async def test_price_includes_the_disk_asked_for(market: SandboxProcess) -> None:
    """allocated_storage decides storage_total_cost and dph_total, over a month of 720 hours."""
    (small,) = await market.offers(ask_contract_id={"eq": OFFER}, allocated_storage=10)
    (large,) = await market.offers(ask_contract_id={"eq": OFFER}, allocated_storage=730.0)

    assert large["storage_total_cost"] == pytest.approx(large["storage_cost"] * 730 / 720)
    assert large["dph_total"] - small["dph_total"] == pytest.approx(large["storage_cost"] * 720 / 720)


async def test_bids_are_priced_by_the_floor(market: SandboxProcess) -> None:
    """Under type=bid the price columns use the minimum bid."""
    (offer,) = await market.offers(ask_contract_id={"eq": OFFER}, type="bid")

    assert offer["dph_base"] == offer["min_bid"]
    assert offer["is_bid"]


async def test_both_search_forms_agree(market: SandboxProcess) -> None:
    """PUT search/asks with `q` is the same search as POST bundles."""
    query = {"gpu_name": {"eq": "RTX 4090"}, "order": [["dph_total", "asc"]]}
    newer = (await market.http.put("/api/v0/search/asks/", json={"select_cols": ["*"], "q": query})).json()

    assert [o["id"] for o in newer["offers"]] == [o["id"] for o in await market.offers(**query)]


async def test_an_offer_is_single_use_and_siblings_shrink(market: SandboxProcess) -> None:
    """Renting hides the offer and what no longer fits beside it; destroying brings both back."""
    machine = {"machine_id": {"eq": 101}}
    before = {o["id"] for o in await market.offers(**machine)}
    instance = await market.rent()

    assert {o["id"] for o in await market.offers(**machine)} == before - {OFFER, 10108}
    refused = await market.create()
    assert refused.status_code == 404
    assert "no_such_ask" in refused.json()["msg"]

    await market.destroy(instance)
    assert {o["id"] for o in await market.offers(**machine)} == before


# Rentals


async def test_an_instance_lives_from_null_to_gone(market: SandboxProcess) -> None:
    """Provisioning, loading, running, stopped and gone follow one another, and only the intervals are billed."""
    instance = await market.rent()
    first = await market.show(instance)
    assert first is not None
    assert first["actual_status"] in (None, "loading")
    assert first["ports"] is None
    await market.reaches(instance, "running")
    await market.put(instance, state="stopped")
    await market.reaches(instance, "exited")
    await market.destroy(instance)
    await market.gone(instance)

    account = await market.ledger(instance)
    assert [i["state"] for i in account["intervals"]] == ["loading", "running", "stopped"]
    assert [i["to"] for i in account["intervals"]] == [
        *(i["from"] for i in account["intervals"][1:]), account["destroyed_at"],
    ]  # fmt: skip


async def test_cost_is_the_sum_over_intervals(market: SandboxProcess) -> None:
    """GPU and disk while running, disk while loading or stopped, in real seconds; nothing after the destroy."""
    instance = await market.rent(disk=720)
    await market.reaches(instance, "running")
    await market.put(instance, state="stopped")
    await market.reaches(instance, "exited")
    await market.destroy(instance)
    await market.gone(instance)

    account = await market.ledger(instance)
    gpu_hour, disk_hour = 2.10, 0.15
    expected = sum(
        (i["to"] - i["from"]) / 3600 * (disk_hour + (gpu_hour if i["state"] == "running" else 0))
        for i in account["intervals"]
    )
    assert float(account["cost_usd"]) == pytest.approx(expected, abs=1e-6)
    assert float(account["cost_usd"]) > 0
    user = (await market.http.get("/api/v0/users/current")).json()
    assert user["credit"] == pytest.approx(100 - expected, abs=1e-5)


async def test_charges_keep_the_label_after_destroy(market: SandboxProcess) -> None:
    """A charge row still carries label and amount when the instance is gone."""
    instance = await market.rent(label="hp-kept")
    await market.reaches(instance, "running")
    await market.destroy(instance)
    await market.gone(instance)

    charges = (await market.http.get("/api/v0/charges/", params={"limit": 20})).json()
    (row,) = charges["results"]
    assert (row["source"], row["metadata"]["label"]) == (f"instance-{instance}", "hp-kept")
    assert row["amount"] == pytest.approx(sum(item["amount"] for item in row["items"]))


async def test_charges_are_those_asked_for(market: SandboxProcess) -> None:
    """By day, in seconds, and by type: another time, milliseconds and another type bring none."""
    instance = await market.rent()
    now = time.time()

    async def sources(day: dict[str, float], *types: str) -> list[str]:
        asked = json.dumps({"day": day} | ({"type": {"in": list(types)}} if types else {}))
        reply = await market.http.get("/api/v0/charges/", params={"select_filters": asked})
        return [row["source"] for row in reply.json()["results"]]

    assert await sources({"gte": now - 3600, "lte": now + 3600}, "instance") == [f"instance-{instance}"]
    assert await sources({"gte": now + 3600, "lte": now + 7200}) == []
    assert await sources({"gte": now - 7200, "lte": now - 3600}) == []
    assert await sources({"gte": now * 1000, "lte": now * 1000}) == []
    assert await sources({"gte": now - 3600, "lte": now + 3600}, "volume") == []


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"image": ""}, "invalid_args"),
        ({"disk": 4}, "invalid_args"),
        ({"disk": 1_000_000}, "invalid_args"),
        ({"disk": "nan"}, "invalid_args"),
        ({"onstart": "x" * 4097}, "invalid_args"),
        ({"env": "-e A=B"}, "invalid_args"),
        ({"env": {"A": "x" * 300}}, "invalid_args"),
        ({"price": 500}, "invalid_price"),
        ({"label": "x" * 257}, "label_too_long"),
    ],
)
async def test_a_bad_create_is_refused_and_rents_nothing(
    market: SandboxProcess, body: dict[str, Any], error: str
) -> None:
    """Each limit of the create call gives its slug, and no instance."""
    reply = await market.create(**body)

    assert (reply.status_code, reply.json()["error"]) == (400, error)
    assert await market.listed() == []
    assert (await market.journal())[-2]["effect"] == "none"


@pytest.mark.parametrize("body", [[], "text", {"image": "box", "price": {}}, {"image": "box", "env": 7}])
async def test_a_body_that_is_none_is_refused_and_in_the_journal(market: SandboxProcess, body: Any) -> None:
    """Whatever is sent, the market answers in its own words, rents nothing, and the journal has it."""
    reply = await market.http.put(f"/api/v0/asks/{OFFER}/", json=body)

    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_args")
    assert [(r["body"], r["status"], r["effect"]) for r in await market.journal()] == [(body, 400, "none")]


async def test_a_bid_below_the_floor_leaves_a_stopped_instance(market: SandboxProcess) -> None:
    """The error carries new_contract: something exists and bills its disk."""
    reply = await market.create(price=0.01)

    assert reply.status_code == 400
    instance = reply.json()["new_contract"]
    await market.reaches(instance, "exited")
    assert (await market.journal())[0]["effect"] == f"created {instance}"


async def test_without_cancel_unavail_a_taken_offer_leaves_a_stopped_instance(market: SandboxProcess) -> None:
    """cancel_unavail=false rents a stopped, disk-billed instance instead of refusing."""
    await market.rent()
    reply = await market.create(cancel_unavail=False)

    assert reply.status_code == 200
    await market.reaches(reply.json()["new_contract"], "exited")


async def test_a_start_on_taken_gpus_is_queued_and_comes_true(market: SandboxProcess) -> None:
    """The start says that it is no success, waits for the GPU all the same, and bills by itself once it is free."""
    first = await market.rent()
    await market.reaches(first, "running")
    await market.put(first, state="stopped")
    await market.reaches(first, "exited")
    second = await market.rent(10108)

    reply = await market.http.put(f"/api/v0/instances/{first}/", json={"state": "running"})
    assert (reply.status_code, reply.json()["success"]) == (200, False)
    assert (reply.json()["error"], "state change queued" in reply.json()["msg"]) == ("resources_unavailable", True)
    row = await market.show(first)
    assert row is not None
    assert (row["intended_status"], row["cur_state"]) == ("running", "stopped")

    await market.destroy(second)
    await market.reaches(first, "running")


async def test_an_unknown_image_never_runs(market: SandboxProcess) -> None:
    """The pull fails with Docker's words and the instance stays `created`."""
    instance = await market.rent(image="no/such:image")

    await market.reaches(instance, "created")
    row = await market.show(instance)
    assert row is not None
    assert "manifest unknown" in row["status_msg"]


async def test_destroy_needs_an_instance(market: SandboxProcess) -> None:
    """A second destroy and an unknown id are 404 no_such_instance, never auth_error."""
    instance = await market.rent()
    assert (await market.destroy(instance)).json() == {"success": True}

    for other in (instance, 4242):
        reply = await market.destroy(other)
        assert (reply.status_code, reply.json()["error"]) == (404, "no_such_instance")
    assert await market.show(4242) is None


# Listings


async def test_listing_pages_filters_and_columns(market: SandboxProcess) -> None:
    """Pages of at most 25 by token cover everything once; filters and select_cols are honoured."""
    offers = [o["id"] for o in await market.offers(num_gpus={"eq": 1}, order=[["id", "asc"]])]
    rented = [await market.rent(offer, label=f"hp-{offer}") for offer in offers]
    rented += [await market.rent(offer) for offer in (10202, 10204, 10302)]
    assert len(rented) > 25

    seen: list[int] = []
    token = None
    while True:
        params: dict[str, Any] = {"limit": 10} | ({"after_token": token} if token else {})
        page = (await market.http.get("/api/v1/instances/", params=params)).json()
        assert page["success"]
        seen += [row["id"] for row in page["instances"]]
        token = page["next_token"]
        if token is None:
            break
    assert seen == rented

    whole = (await market.http.get("/api/v1/instances/", params={"limit": 500})).json()
    assert (len(whole["instances"]), whole["total_instances"]) == (25, len(rented))
    params = {
        "select_filters": json.dumps({"label": {"eq": f"hp-{offers[3]}"}}),
        "select_cols": json.dumps(["id", "nonsense"]),
    }
    one = (await market.http.get("/api/v1/instances/", params=params)).json()
    assert one["instances"] == [{"id": rented[3], "nonsense": None}]


@pytest.mark.parametrize("params", [{"after_token": "!"}, {"select_filters": '{"dph_total":{"gt":1}}'}])
async def test_a_listing_refuses_what_it_cannot_do(market: SandboxProcess, params: dict[str, str]) -> None:
    """A bad token and a filter on a computed column are 400."""
    assert (await market.http.get("/api/v1/instances/", params=params)).status_code == 400


async def test_the_old_listing_is_retired(market: SandboxProcess) -> None:
    """GET /api/v0/instances/ is 410, not an empty list."""
    reply = await market.http.get("/api/v0/instances/")

    assert (reply.status_code, reply.json()["error"]) == (410, "deprecated_endpoint")


# Keys


async def test_keys_open_what_they_should(market: SandboxProcess) -> None:
    """No key is 403, a wrong one 404 auth_error; an instance's own key reaches that instance alone."""
    mine = (await market.create()).json()
    other = await market.rent(10201)

    async def ask(key: str | None, instance: int, **change: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(base_url=market.url, headers=headers) as http:
            return await http.put(f"/api/v0/instances/{instance}/", json=change)

    assert (await ask(None, other, state="stopped")).status_code == 403
    wrong = await ask("wrong", other, state="stopped")
    assert (wrong.status_code, wrong.json()["error"]) == (404, "auth_error")
    assert (await ask(mine["instance_api_key"], other, state="stopped")).status_code == 403
    assert (await ask(mine["instance_api_key"], mine["new_contract"], state="stopped")).status_code == 200
    row = await market.show(mine["new_contract"])
    assert row is not None
    assert row["intended_status"] == "stopped"


async def test_ssh_keys_of_account_and_instance(market: SandboxProcess) -> None:
    """Account keys reach new instances only; a duplicate attach is refused; the list is a string of JSON."""
    early = (await market.create()).json()["new_contract"]
    assert (await market.http.get("/api/v0/ssh/")).status_code == 404
    assert (await market.http.post("/api/v0/ssh/", json={"ssh_key": SSH})).json()["success"]
    late = (await market.create(10201)).json()["new_contract"]

    async def keys(instance: int) -> list[dict[str, Any]]:
        listed: str = (await market.http.get(f"/api/v0/instances/{instance}/ssh/")).json()["ssh_keys"]
        return list(json.loads(listed))

    assert await keys(early) == []
    assert [key["public_key"] for key in await keys(late)] == [SSH]
    again = await market.http.post(f"/api/v0/instances/{late}/ssh/", json={"ssh_key": SSH})
    assert (again.status_code, "duplicate" in again.json()["msg"]) == (400, True)
    (key,) = await keys(late)
    await market.http.request("DELETE", f"/api/v0/instances/{late}/ssh/{key['id']}/", json={})
    assert await keys(late) == []


# Money and limits


async def test_no_credit_stops_everything(market: SandboxProcess) -> None:
    """At zero credit the instances are stopped and nothing new can be rented; the disks bill on."""
    instance = await market.rent()
    await market.reaches(instance, "running")
    await market.end()
    spend_everything(market.directory)
    market.start()

    await market.reaches(instance, "exited")
    reply = await market.create(10201)
    assert reply.json()["error"] == "insufficient_credit"


def spend_everything(directory: Path) -> None:
    """Empty the account of a stopped sandbox."""
    db = sqlite3.connect(directory / "ledger.sqlite")
    with db:
        db.execute("UPDATE account SET value = '0' WHERE name = 'opening_credit'")
    db.close()


async def test_a_chatty_client_is_limited(tmp_path: Path) -> None:
    """Two listings within the interval give 429 as plain text, and the second has no effect on later ones."""
    market = SandboxProcess(tmp_path / "sandbox", time_scale=1.0)
    try:
        assert (await market.http.get("/api/v1/instances/")).status_code == 200
        limited = await market.http.get("/api/v1/instances/")

        assert limited.status_code == 429
        assert limited.headers["content-type"] == "text/plain"
        assert "too frequent" in limited.text

        async def served() -> bool:
            return (await market.http.get("/api/v1/instances/")).status_code == 200

        await until(served)
    finally:
        await market.end()


async def test_the_journal_tells_every_request_and_no_secret(market: SandboxProcess) -> None:
    """Each request is there once, in order, with its effect; the key is nowhere in it."""
    instance = await market.rent()
    await market.put(instance, label="renamed")
    await market.destroy(instance)

    journal = await market.journal()
    assert [(r["method"], r["status"], r["effect"]) for r in journal] == [
        ("PUT", 200, f"created {instance}"),
        ("POST", 200, f"key attached to {instance}"),
        ("PUT", 200, f"labelled {instance}"),
        ("DELETE", 200, f"destroyed {instance}"),
    ]
    assert [r["seq"] for r in journal] == [1, 2, 3, 4]
    assert journal[2]["body"] == {"label": "renamed"}
    assert market.api_key not in json.dumps(journal)
