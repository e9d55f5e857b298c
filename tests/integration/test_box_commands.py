"""Commands over a real connection: what is parsed, what is refused, what a lost link looks like."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from boxes import LoopbackBox, loopback_box, until
from tcp_proxy import CuttingProxy

from daemon.box.box import Box
from daemon.errors import LinkLost, RemoteFailed


@asynccontextmanager
async def proven(folder: Path, noise: str = "", port: int | None = None) -> AsyncIterator[tuple[LoopbackBox, Box]]:
    async with loopback_box(folder, noise=noise) as there:
        box = Box(there.address(port=port), there.key)
        await box.prove()
        yield there, box
        await box.aclose()


async def test_noise_of_the_login_is_never_part_of_the_output(tmp_path: Path) -> None:
    """What .bashrc prints, even if it looks like our framing, is not the command's output."""
    noise = "Welcome!\nhomeport-0 begin\nlies\nhomeport-0 end 0\n"
    async with proven(tmp_path, noise) as (_, box):
        assert await box.run("printf", "a b\nc") == "a b\nc"


async def test_a_failing_command_carries_its_code_and_complaint(tmp_path: Path) -> None:
    """RemoteFailed has the exit code and the end of stderr."""
    async with proven(tmp_path) as (_, box):
        with pytest.raises(RemoteFailed) as failure:
            await box.run("echo no such model >&2; exit 21")

        assert failure.value.exit_code_remote == 21
        assert "no such model" in failure.value.output


async def test_a_call_leaves_how_long_the_next_may_stay_away(tmp_path: Path) -> None:
    """Every command writes what it is to allow from then on, as of its own moment."""
    async with proven(tmp_path) as (there, box):
        said = []

        for allowed_s in (None, 3600.0, 1800.4):
            if allowed_s is not None:
                box.allow_silence(allowed_s)
            await box.run("true")
            said.append((there.root / "run" / "called").read_text())

        assert said == ["", "3600\n", "1800\n"]


async def test_a_reply_over_the_limit_is_refused(tmp_path: Path) -> None:
    """A box cannot fill our memory; the next command is served."""
    async with proven(tmp_path) as (_, box):
        with pytest.raises(RemoteFailed, match="more than 65536 bytes"):
            await box.run("yes", limit=65536, timeout_s=20)

        assert await box.run("echo still here") == "still here\n"


async def test_a_cut_during_a_command_is_a_lost_link_and_the_next_call_works(tmp_path: Path) -> None:
    """A dead connection never reads as a finished command."""
    async with loopback_box(tmp_path) as there, CuttingProxy(there.port) as proxy:
        box = Box(there.address(port=proxy.port), there.key)
        await box.prove()
        running = asyncio.create_task(box.run("touch begun; sleep 60"))
        await until((there.root / "begun").exists)

        proxy.cut()

        with pytest.raises(LinkLost):
            await running
        assert await box.run("echo back") == "back\n"
        await box.aclose()


async def test_a_command_without_an_end_is_a_lost_link(tmp_path: Path) -> None:
    """A time-out is no evidence about the work."""
    async with proven(tmp_path) as (_, box):
        with pytest.raises(LinkLost, match="did not end in"):
            await box.run("sleep 60", timeout_s=0.5)


async def test_a_connection_closed_in_order_during_a_command_is_a_lost_link(tmp_path: Path) -> None:
    """Without an exit status the command's end is unknown, however politely the other side hung up."""
    async with proven(tmp_path) as (there, box):
        running = asyncio.create_task(box.run("touch begun; sleep 60"))
        await until((there.root / "begun").exists)

        there.server.send_signal(signal.SIGHUP)

        with pytest.raises(LinkLost):
            await running
