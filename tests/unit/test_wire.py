"""Reading the market's JSON: units, absent figures, text with blanks, both SSH routes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.domain.market import OfferQuery
from daemon.errors import HomeportError
from daemon.market import wire

ROW: dict[str, Any] = {
    "id": 7,
    "label": "hp-i-j-n ",
    "actual_status": "running",
    "status_msg": "success, running img/ssh\n",
    "num_gpus": "8",
    "dph_total": 2.052083,
    "storage_cost": 0.149333,
    "disk_space": 10,
    "start_date": 1790000000.5,
    "end_date": None,
    "public_ipaddr": "1.2.3.4\n",
    "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "40022"}]},
    "ssh_host": "ssh4.vast.ai",
    "ssh_port": 12345,
    "image_runtype": "ssh_direc ssh_proxy",
}


@pytest.mark.parametrize(
    ("headers", "shown"),
    [
        ({"date": "Sun, 29 Nov 2026 16:40:41 GMT"}, 1_795_970_441_000),
        ({"date": "Sun, 29 Nov 2026 17:40:41 +0100"}, 1_795_970_441_000),
        ({"date": "Sun, 29 Nov 2026 16:40:41 -0000"}, None),  # of no zone that anybody knows
        ({"date": "Sun, 29 Nov 99999 16:40:41 GMT"}, None),
        ({"date": "soon"}, None),
        ({}, None),
    ],
)
def test_what_the_markets_clock_shows(headers: dict[str, str], shown: int | None):
    """UTC milliseconds; what cannot be read is no evidence about our own clock."""
    assert wire.clock_ms(headers) == shown


def test_an_instance_is_read_into_our_units():
    """Micro-dollars, milliseconds, stripped text; storage is a monthly price over 720 hours."""
    instance = wire.read_instance(ROW)

    assert (instance.label, instance.status_msg, instance.num_gpus) == ("hp-i-j-n", "success, running img/ssh", 8)
    assert (instance.price_per_hour, instance.storage_per_hour) == (2_052_083, 2_074)
    assert (instance.start_ms, instance.end_ms) == (1_790_000_000_500, None)
    assert (instance.direct, instance.proxy) == (("1.2.3.4", 40022), ("ssh4.vast.ai", 12345))


@pytest.mark.parametrize(
    ("change", "direct", "proxy"),
    [
        ({"ports": None}, None, ("ssh4.vast.ai", 12345)),
        ({"ports": {"22/tcp": None}}, None, ("ssh4.vast.ai", 12345)),
        ({"ports": {"8080/tcp": [{"HostPort": "1"}]}}, None, ("ssh4.vast.ai", 12345)),
        ({"public_ipaddr": None}, None, ("ssh4.vast.ai", 12345)),
        ({"ssh_host": None}, ("1.2.3.4", 40022), None),
        ({"image_runtype": "jupyter_proxy ssh_proxy"}, ("1.2.3.4", 40022), ("ssh4.vast.ai", 12346)),
    ],
)
def test_ssh_addresses_appear_only_when_they_are_whole(change, direct, proxy):
    """Half an address is none; a jupyter image has its proxy one port further."""
    instance = wire.read_instance(ROW | change)

    assert (instance.direct, instance.proxy) == (direct, proxy)


@pytest.mark.parametrize("bad", [None, "7", 7.0, True])
def test_an_instance_without_an_integer_id_is_no_instance(bad):
    """Text, fractions and null are refused: the id is what money hangs on."""
    with pytest.raises(wire.Unreadable):
        wire.read_instance(ROW | {"id": bad})


def test_an_unknown_status_is_kept_as_it_came():
    """A new word of the market reaches the log; it is not turned into one we know."""
    assert wire.read_instance(ROW | {"actual_status": "hibernating"}).actual_status == "hibernating"


@pytest.mark.parametrize("missing", ["id", "machine_id", "dph_total"])
def test_an_offer_that_cannot_be_rented_is_left_out(missing):
    """Without id, machine or price there is nothing to choose."""
    raw = {"id": 1, "machine_id": 2, "dph_total": 1.5}

    assert wire.read_offers({"offers": [raw, raw | {missing: None}]}) == [wire.read_offer(raw)]


def test_a_search_names_every_filter_and_its_disk():
    """GPU memory in MB, duration in seconds, price in dollars, storage as it will be rented."""
    query = OfferQuery(("H100 SXM", "H200"), 8, 75_000, 300, 20_500_000, 90_000.0, verified=True, min_cuda=12.8)

    body = wire.search_body(query, floor=1.25)

    assert body["gpu_name"] == {"in": ["H100 SXM", "H200"]}
    assert body["dph_total"] == {"lte": 20.5, "gte": 1.25}
    assert body["gpu_ram"] == {"gte": 75_000}
    assert body["duration"] == {"gte": 90_000.0}
    assert body["cuda_max_good"] == {"gte": 12.8}
    assert (body["verified"], body["allocated_storage"]) == ({"eq": True}, 300.0)
    assert "verified" not in wire.search_body(OfferQuery((), 1, 0, 10, None, 0.0, verified=False))


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ("API requests too frequent", {}, None),
        ("API requests too frequent", {"retry-after": "12"}, 12.0),
        ('{"retry_after": 7}', {}, 7.0),
        ('{"error": "search_quota_exceeded"}', {"x-ratelimit-reset": "1600"}, 600.0),
        ("", {"x-ratelimit-reset": "900"}, 0.0),
        ("", {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ],
)
def test_the_wait_a_refusal_asks_for(body, headers, expected):
    """Header, body or the quota's reset time; a wait that cannot be read is none."""
    assert wire.retry_after_s(wire.answer(429, body, headers), now_s=1000.0) == expected


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "7", "-1", "nan", "x "])
json_values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.sampled_from(["22/tcp", "id"]), scalars)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the two cores are shared
@given(st.dictionaries(st.sampled_from([*ROW, "success", "error", "msg", "new_contract"]), json_values))
def test_no_reply_breaks_the_readers(raw):
    """Whatever JSON arrives is read, or refused with our own errors."""
    reply = wire.answer(200, json.dumps(raw), {})

    assert wire.failure("x", reply) is None or isinstance(wire.failure("x", reply), HomeportError)
    for read in (wire.read_instance, wire.read_offer, wire.read_account, wire.read_shown, wire.read_instances):
        try:
            read(raw)
        except wire.Unreadable:
            continue
    assert reply.new_contract is None or isinstance(reply.new_contract, int)


@pytest.mark.parametrize("date", [-1, 0, "0", 1e12, 253_402_300_800])
def test_a_date_that_no_calendar_has_is_unknown(date: Any):
    """-1 and 0 stand for "not known": a contract that ended in 1970 would end the training to save the model."""
    instance = wire.read_instance(ROW | {"end_date": date, "start_date": date})
    offer = wire.read_offer({"id": 1, "machine_id": 1, "dph_total": 1.0, "end_date": date})

    assert (instance.start_ms, instance.end_ms) == (None, None)
    assert offer is not None and offer.end_date_ms is None


def test_a_price_below_zero_is_unknown():
    """It would be the cheapest of all offers, and take money off what a machine has cost, and off every limit."""
    instance = wire.read_instance(ROW | {"dph_total": -1, "storage_total_cost": -1, "storage_cost": -1})
    costs = {"machine_id": 1, "inet_down_cost": -1, "inet_up_cost": -1}
    found = wire.read_offers({"offers": [costs | {"id": n, "dph_total": n - 2} for n in (1, 2, 3)]})

    assert (instance.price_per_hour, instance.storage_per_hour) == (None, None)
    assert [(offer.id, offer.inet_down_per_gb, offer.inet_up_per_gb) for offer in found] == [(3, 0, 0)]
