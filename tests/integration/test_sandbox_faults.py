"""The faults a sandbox takes orders for: each does what the catalogue says, as often as ordered, and nothing else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import httpx
import pytest
from sandboxes import FOR_EVER, OFFER, SandboxProcess, alive, until

CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
DESTROY = {"method": "DELETE", "path": "/api/v0/instances/*"}
LIST = {"method": "GET", "path": "/api/v1/instances"}


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def test_reply_lost_after_create_has_rented(market: SandboxProcess) -> None:
    """The connection drops, the instance exists, the journal tells both; the next create is answered."""
    await market.fault("reply_lost", match=CREATE)

    with pytest.raises(httpx.TransportError):
        await market.create()

    (instance,) = await market.listed()
    (first, *_) = await market.journal()
    assert (first["status"], first["effect"]) == (None, f"created {instance}")
    assert (await market.create(10201)).status_code == 200


async def test_reply_lost_after_destroy_has_destroyed(market: SandboxProcess) -> None:
    """The destroy took effect although nobody said so."""
    instance = await market.rent()
    await market.fault("reply_lost", match=DESTROY)

    with pytest.raises(httpx.TransportError):
        await market.destroy(instance)

    await market.gone(instance)


async def test_lost_before_effect_has_done_nothing(market: SandboxProcess) -> None:
    """The connection drops and nothing was rented."""
    await market.fault("lost_before_effect", match=CREATE)

    with pytest.raises(httpx.TransportError):
        await market.create()

    assert await market.listed() == []
    assert (await market.journal())[0]["effect"] == "none"


@pytest.mark.parametrize(
    ("fault", "params", "status", "text"),
    [
        ("http_error", {"status": 429, "body": "API requests too frequent"}, 429, "API requests too frequent"),
        ("http_error", {"status": 400, "body": {"error": "spend_rate_limit"}}, 400, '{"error": "spend_rate_limit"}'),
        ("html_page", {}, 502, "<html>"),
        ("bad_key", {}, 404, "auth_error"),
    ],
)
async def test_an_error_instead_of_the_effect(
    market: SandboxProcess, fault: str, params: dict[str, Any], status: int, text: str
) -> None:
    """The ordered status and body come back, and nothing was rented."""
    await market.fault(fault, match=CREATE, params=params)

    reply = await market.create()

    assert reply.status_code == status
    assert text in reply.text
    assert await market.listed() == []


async def test_an_error_after_the_effect(market: SandboxProcess) -> None:
    """A gateway error hides a rental that took place."""
    await market.fault("effect_then_error", match=CREATE, params={"status": 504})

    assert (await market.create()).status_code == 504
    assert len(await market.listed()) == 1


async def test_a_slow_reply_comes_after_the_effect(market: SandboxProcess) -> None:
    """A client that gave up early finds its instance rented."""
    await market.fault("slow_reply", match=CREATE, params={"seconds": 5.0})

    with pytest.raises(httpx.ReadTimeout):
        await market.http.put(f"/api/v0/asks/{OFFER}/", json={"image": "box"}, timeout=0.3)

    assert len(await market.listed()) == 1


async def test_a_truncated_list_is_no_json(market: SandboxProcess) -> None:
    """Status 200 with half a body, once."""
    await market.rent()
    await market.fault("listing", params={"shape": "truncated"})

    reply = await market.http.get("/api/v1/instances/")

    assert reply.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()
    assert len(await market.listed()) == 1


async def test_a_lagging_list_leaves_the_young_out(market: SandboxProcess) -> None:
    """The listing lacks the new instance while show-one has it; removing the fault ends the lag."""
    fault = await market.fault("list_lag", match=LIST, count=None, params={"seconds": 3600})
    instance = await market.rent()

    assert await market.listed() == []
    assert await market.show(instance) is not None

    assert (await market.http.delete(f"/sandbox/faults/{fault}")).status_code == 200
    assert await market.listed() == [instance]


async def test_a_late_instance_appears_later(market: SandboxProcess) -> None:
    """No reply shows it for the time ordered, then all do; it bills from the beginning."""
    await market.fault("late_listing", match=CREATE, params={"seconds": FOR_EVER})
    instance = (await market.create()).json()["new_contract"]

    assert await market.listed() == []
    assert await market.show(instance) is None
    assert (await market.ledger(instance))["intervals"]

    await market.fault("vanish", params={"instance": instance, "seconds": 0.5})

    async def listed() -> bool:
        return await market.listed() == [instance]

    await until(listed)


async def test_a_double_accept_rents_one_offer_twice(market: SandboxProcess) -> None:
    """The same offer gives a second instance, once."""
    await market.rent()
    await market.fault("double_accept", match=CREATE)

    assert (await market.create()).status_code == 200
    assert (await market.create()).status_code == 404
    assert len(await market.listed()) == 2


async def test_a_vanished_row_comes_back(market: SandboxProcess) -> None:
    """The instance is in no reply for a while, and lives."""
    instance = await market.rent()
    await market.reaches(instance, "running")
    await market.fault("vanish", params={"instance": instance, "seconds": FOR_EVER})

    assert await market.show(instance) is None

    await market.fault("vanish", params={"instance": instance, "seconds": 0.5})
    await market.reaches(instance, "running")


async def test_an_offline_host_bills_nothing_and_returns(market: SandboxProcess) -> None:
    """Offline is shown and billed as nothing, SSH is out; then the host is back with its work."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run("setsid sleep 1000 >/dev/null 2>&1 & echo $!")).stdout))
    await market.fault("offline", params={"instance": instance, "seconds": FOR_EVER})
    await market.reaches(instance, "offline")
    await market.fault("offline", params={"instance": instance, "seconds": 0.5})
    await market.reaches(instance, "running")

    async with await market.connect(instance):
        assert alive(pid)
    states = [i["state"] for i in (await market.ledger(instance))["intervals"]]
    assert states == ["loading", "running", "offline", "running"]


async def test_ssh_can_refuse(market: SandboxProcess) -> None:
    """Connections are refused for the time ordered; the processes of the box live on."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run("setsid sleep 1000 >/dev/null 2>&1 & echo $!")).stdout))
    row = await market.show(instance)
    assert row is not None
    port = int(row["ports"]["22/tcp"][0]["HostPort"])
    await market.fault("ssh_refused", params={"instance": instance, "seconds": FOR_EVER})

    async def refused() -> bool:
        try:
            async with await market.login(port):
                return False
        except (OSError, asyncssh.Error) as error:
            return isinstance(error, ConnectionRefusedError)

    await until(refused)
    await market.fault("ssh_refused", params={"instance": instance, "seconds": 0.5})
    async with await market.connect(instance):
        assert alive(pid)


async def test_stop_ends_the_work_of_a_box_whose_sshd_is_down(market: SandboxProcess) -> None:
    """The power switch needs no sshd: what runs in the box dies before `exited` is shown."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run("setsid sleep 1000 >/dev/null 2>&1 & echo $!")).stdout))
    await market.fault("ssh_refused", params={"instance": instance, "seconds": 60.0})

    async def sshd_down() -> bool:
        file = market.directory / "boxes" / str(instance) / "process.json"
        return not alive(json.loads(file.read_text())["pid"])

    await until(sshd_down)
    await market.put(instance, state="stopped")
    await market.reaches(instance, "exited")
    assert not alive(pid)


async def test_ssh_is_cut_after_the_bytes_ordered(market: SandboxProcess) -> None:
    """A transfer dies after about so many bytes, and the next login works at once."""
    instance = await market.rent()
    box = await market.connect(instance)
    await market.fault("ssh_cut", params={"instance": instance, "after_bytes": 2_000_000})

    async def order_taken() -> bool:
        return not (market.directory / "boxes" / str(instance) / "orders" / "ssh_cut.json").exists()

    await until(order_taken)
    stream = await box.create_process("head -c 50000000 /dev/zero", encoding=None)
    received = 0
    with pytest.raises((asyncssh.ConnectionLost, ConnectionError)):
        while chunk := await stream.stdout.read(65536):
            received += len(chunk)
    with contextlib.suppress(ConnectionError):
        await box.wait_closed()

    assert 1_000_000 < received < 6_000_000
    async with await market.connect(instance) as again:
        assert (await again.run("echo up")).stdout == "up\n"


async def test_somebody_else_destroys_it(market: SandboxProcess) -> None:
    """The instance goes although the journal has no DELETE."""
    instance = await market.rent()
    await market.fault("console_destroy", params={"instance": instance})

    await market.gone(instance)
    assert [r for r in await market.journal() if r["method"] == "DELETE"] == []


async def test_a_host_fault_can_wait_for_a_request(market: SandboxProcess) -> None:
    """With a match it strikes after the matching request instead of at once."""
    instance = await market.rent()
    await market.fault("console_destroy", match={"method": "PUT", "path": "/api/v0/instances/*"})
    assert await market.show(instance) is not None

    await market.put(instance, label="trigger")

    await market.gone(instance)


async def test_the_catalogue_counts_hits(market: SandboxProcess) -> None:
    """GET tells what can be ordered and how often each order has struck; unknown faults are refused."""
    await market.fault("http_error", match=LIST, count=2)
    for _ in range(3):
        await market.http.get("/api/v1/instances/")

    told = (await market.http.get("/sandbox/faults")).json()
    assert [(f["fault"], f["count"], f["hits"]) for f in told["faults"]] == [("http_error", 2, 2)]
    assert {"reply_lost", "lost_before_effect", "http_error", "bad_key", "list_lag", "ssh_refused", "ssh_cut", "reboot",
            "offline", "console_destroy"} <= {k["fault"] for k in told["catalogue"]}  # fmt: skip
    assert (await market.http.post("/sandbox/faults", json={"fault": "gremlins"})).status_code == 400
    await market.http.delete("/sandbox/faults")
    assert (await market.http.get("/sandbox/faults")).json()["faults"] == []
