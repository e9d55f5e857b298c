"""The sandbox started again on its directory, after an orderly end and after kill -9."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from sandboxes import WITHIN_S, SandboxProcess, alive, until

DETACHED = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def test_kill_9_leaves_boxes_running_and_loses_nothing(market: SandboxProcess) -> None:
    """Same URL, key, instances and journal; the box and its work never noticed."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(DETACHED)).stdout))
        before = (market.url, market.api_key, await market.ledger(instance), len(await market.journal()))

        await market.end(signal.SIGKILL)
        assert (await box.run("echo still here")).stdout == "still here\n"
        market.start()

        assert (await box.run("echo still here")).stdout == "still here\n"
    account = await market.ledger(instance)
    assert (market.url, market.api_key) == before[:2]
    assert account["intervals"] == before[2]["intervals"]
    assert len(await market.journal()) == before[3]
    async with await market.connect(instance):
        assert alive(pid)


async def test_an_orderly_end_switches_everything_off(market: SandboxProcess) -> None:
    """No process of any box is left; the next start boots the boxes with their disks."""
    instance = await market.rent(onstart="echo started >> starts")
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(DETACHED)).stdout))
    await market.end()

    assert not alive(pid)
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(market.directory) in command] == []

    market.start()
    async with await market.connect(instance) as box:

        async def starts() -> bool:
            return (await box.run("cat starts")).stdout == "started\nstarted\n"

        await until(starts)  # sshd does not wait for it


async def test_a_killed_destroy_is_carried_out(market: SandboxProcess) -> None:
    """A destroy that was accepted before kill -9 is finished after the restart."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(DETACHED)).stdout))
    assert (await market.destroy(instance)).json()["success"]
    await market.end(signal.SIGKILL)
    market.start()

    await market.gone(instance)
    assert not alive(pid)
    assert not market.home(instance).exists()


async def test_a_market_that_fails_leaves_nothing_running(market: SandboxProcess) -> None:
    """What ends the market by an error of its own, such as a file that it cannot read, ends its boxes too."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        pid = int(str((await box.run(DETACHED)).stdout))
    (market.directory / "boxes" / str(instance) / "traffic.json").write_text("{")

    assert await asyncio.to_thread(market.process.wait, WITHIN_S) != 0
    assert not alive(pid)
