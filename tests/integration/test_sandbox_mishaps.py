"""What hosts, contracts and accounts go through unasked: statuses, bids, ends of contract and of credit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sandboxes import SandboxProcess, alive, until

SLEEPER = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def billed(market: SandboxProcess, instance: int) -> list[str]:
    return [interval["state"] for interval in (await market.ledger(instance))["intervals"]]


async def test_a_pull_that_does_not_end(market: SandboxProcess) -> None:
    """It stays `loading` and bills its disk until the fault is lifted; then it runs."""
    await market.fault("stuck_loading", match={"method": "PUT", "path": "/api/v0/asks/*"})
    instance = await market.rent()
    await market.reaches(instance, "loading")
    await market.rent(10201)
    await market.reaches(instance, "loading")
    assert await billed(market, instance) == ["loading"]

    await market.fault("stuck_loading", params={"instance": instance, "seconds": 0.0})

    await market.reaches(instance, "running")


async def test_a_broken_host(market: SandboxProcess) -> None:
    """`created`, cur_state stopped, Docker's words; a stop is still obeyed, and no GPU was ever billed."""
    await market.fault("docker_error", match={"method": "PUT", "path": "/api/v0/asks/*"})
    instance = await market.rent()
    row = await market.show(instance)

    assert row is not None
    assert (row["actual_status"], row["intended_status"], row["cur_state"]) == ("created", "running", "stopped")
    assert "OCI runtime create failed" in row["status_msg"]
    await market.put(instance, state="stopped")
    await market.reaches(instance, "exited")
    assert await billed(market, instance) == ["loading", "stopped"]


async def test_a_container_that_exits(market: SandboxProcess) -> None:
    """`exited` while it ought to run: no process is left, the disk is; it runs again when it is started, not before."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(f"touch kept; {SLEEPER}")).stdout))
    await market.fault("exits", params={"instance": instance})
    row = await market.show(instance)

    assert row is not None
    assert (row["actual_status"], row["intended_status"]) == ("exited", "running")
    assert not alive(pid)
    assert (await billed(market, instance))[-1] == "stopped"
    await market.put(instance, state="running")
    async with await market.connect(instance) as box:
        assert "kept" in str((await box.run("ls")).stdout)


async def test_a_status_that_is_not_so(market: SandboxProcess) -> None:
    """The market says `exited` or what it likes; the work goes on and bills as running."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        for told in ("exited", "unknown", "migrating"):
            await market.fault("status", params={"instance": instance, "status": told, "seconds": 60.0})
            assert await market.status(instance) == told
            assert (await box.run("echo up")).stdout == "up\n"
    assert (await billed(market, instance))[-1] == "running"

    await market.fault("status", params={"instance": instance, "seconds": 0.0})

    await market.reaches(instance, "running")


async def test_an_offline_host_can_be_destroyed(market: SandboxProcess) -> None:
    """The destroy is accepted, and the instance goes although its host is away."""
    instance = await market.rent()
    await market.reaches(instance, "running")
    await market.fault("offline", params={"instance": instance, "seconds": 600.0})

    assert (await market.destroy(instance)).json()["success"]

    await market.gone(instance)


async def test_outbid_and_back(market: SandboxProcess) -> None:
    """Stopped by nobody's request, then running and billed again by itself."""
    instance = await market.rent(price=1.5)
    await market.reaches(instance, "running")
    await market.fault("outbid", params={"instance": instance, "seconds": 600.0})
    await market.reaches(instance, "exited")
    row = await market.show(instance)
    assert row is not None
    assert (row["intended_status"], row["next_state"], row["cur_state"]) == ("stopped", "stopped", "stopped")

    await market.fault("outbid", params={"instance": instance, "seconds": 0.0})

    await market.reaches(instance, "running")
    assert await billed(market, instance) == ["loading", "running", "stopped", "loading", "running"]


async def test_a_higher_bid_wins_and_is_what_is_paid(market: SandboxProcess) -> None:
    """Raising the bid ends the outbidding; seconds before and after it are paid at the price of their time."""
    instance = await market.rent(price=1.5)
    await market.reaches(instance, "running")
    await market.fault("outbid", params={"instance": instance, "seconds": 600.0})
    await market.reaches(instance, "exited")

    raised = await market.http.put(f"/api/v0/instances/bid_price/{instance}/", json={"client_id": "me", "price": 3.0})

    assert raised.json()["success"]
    await market.reaches(instance, "running")
    row = await market.show(instance)
    assert row is not None and row["dph_base"] == 3.0
    await market.destroy(instance)
    account = await market.ledger(instance)
    first, second = [i["to"] - i["from"] for i in account["intervals"] if i["state"] == "running"]
    disk_s = account["intervals"][-1]["to"] - account["intervals"][0]["from"]
    disk_hour = 0.15 * 20 / 720
    assert float(account["cost_usd"]) == pytest.approx(
        (first * 1.5 + second * 3.0 + disk_s * disk_hour) / 3600, abs=2e-6
    )


async def test_a_bid_of_nothing_wins(market: SandboxProcess) -> None:
    """A null price bids what wins: an instance rented under the floor starts; on-demand rentals have no bid."""
    instance = (await market.create(price=0.01)).json()["new_contract"]
    await market.reaches(instance, "exited")

    await market.http.put(f"/api/v0/instances/bid_price/{instance}/", json={"client_id": "me", "price": None})

    await market.reaches(instance, "running")
    other = await market.rent(10201)
    refused = await market.http.put(f"/api/v0/instances/bid_price/{other}/", json={"price": 2.0})
    assert refused.status_code == 400


async def test_the_end_of_a_contract(market: SandboxProcess) -> None:
    """Stopped at its end, not to be started again, deleted after the grace."""
    instance = await market.rent()
    await market.reaches(instance, "running")
    await market.fault("end_date", params={"instance": instance, "seconds": 0.0, "grace_s": 36_000.0})
    await market.reaches(instance, "exited")

    assert (await market.put(instance, state="running"))["success"] is False
    assert market.home(instance).exists()
    await market.fault("end_date", params={"instance": instance, "seconds": 0.0, "grace_s": 0.0})

    await market.gone(instance)
    assert not market.home(instance).exists()


async def test_no_credit_stops_then_deletes(market: SandboxProcess) -> None:
    """At zero everything is stopped and nothing is rented; after the buffer, without a top-up, it is deleted."""
    instance = await market.rent()
    await market.reaches(instance, "running")
    await market.fault("credit", params={"left": 0.0, "buffer_s": 36_000.0})
    await market.reaches(instance, "exited")
    assert (await market.create(10201)).json()["error"] == "insufficient_credit"
    assert (await market.ask("/api/v0/users/current"))["credit"] <= 0

    await market.fault("credit", params={"left": 50.0})
    assert (await market.ask("/api/v0/users/current"))["credit"] == pytest.approx(50.0, abs=0.01)
    await market.put(instance, state="running")
    await market.reaches(instance, "running")
    await market.fault("credit", params={"left": -1.0, "buffer_s": 0.0})

    await market.gone(instance)
    assert [r for r in await market.journal() if r["method"] == "DELETE"] == []


async def test_a_jupyter_proxy_sits_on_the_next_port(market: SandboxProcess) -> None:
    """With jupyter in the runtype the stated port is one less than where sshd answers."""
    instance = await market.rent(runtype="jupyter_direc ssh_direc ssh_proxy")
    async with await market.connect(instance):
        row = await market.show(instance)
    assert row is not None

    async def answers() -> bool:
        async with await market.login(int(row["ssh_port"]) + 1) as box:
            return (await box.run("echo $CONTAINER_ID")).stdout == f"{instance}\n"

    assert await until(answers)
