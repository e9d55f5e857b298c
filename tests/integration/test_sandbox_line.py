"""The way into a box when it is disturbed: keys, host keys, addresses, dead and slow lines, wrong bytes, tmux."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from sandboxes import FOR_EVER, SandboxProcess, until


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def attach(market: SandboxProcess, instance: int) -> None:
    key = market.key.export_public_key().decode()
    reply = await market.http.post(f"/api/v0/instances/{instance}/ssh/", json={"ssh_key": key})
    assert reply.json()["success"]


async def ports(market: SandboxProcess, instance: int) -> tuple[int, int]:
    """Direct and proxy."""
    row = await market.show(instance)
    assert row is not None
    return int(row["ports"]["22/tcp"][0]["HostPort"]), int(row["ssh_port"])


async def denied(market: SandboxProcess, instance: int) -> bool:
    """Whether sshd answers and refuses our key."""
    try:
        async with await market.login((await ports(market, instance))[0]):
            return False
    except asyncssh.PermissionDenied:
        return True
    except OSError:
        return False


async def struck(market: SandboxProcess, order: int) -> int:
    told: list[dict[str, Any]] = (await market.http.get("/sandbox/faults")).json()["faults"]
    return next(each["hits"] for each in told if each["id"] == order)


async def test_a_key_that_never_arrives(market: SandboxProcess) -> None:
    """The attach succeeds and sshd refuses the key; attached again, it opens."""
    await market.fault("key_lost")
    instance = await market.rent()
    await market.reaches(instance, "running")

    await until(lambda: denied(market, instance))
    await attach(market, instance)

    async with await market.connect(instance):
        pass


async def test_a_key_that_comes_late(market: SandboxProcess) -> None:
    """Taken after the time ordered, and not before."""
    await market.fault("late_key", params={"seconds": 4.0})
    began = time.monotonic()
    instance = await market.rent()

    async with await market.connect(instance):
        assert time.monotonic() - began >= 4.0


async def test_wiped_keys(market: SandboxProcess) -> None:
    """An open connection goes on, a new login is refused, an attach mends it."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        await market.fault("keys_wiped", params={"instance": instance})
        await until(lambda: denied(market, instance))
        assert (await box.run("echo on")).stdout == "on\n"

    await attach(market, instance)
    async with await market.connect(instance):
        pass


async def test_another_host_key(market: SandboxProcess) -> None:
    """The same box, disk and port, with another key."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        before = box.get_server_host_key()
        await box.run("touch kept")
        where = await ports(market, instance)

    await market.fault("host_key_changes", params={"instance": instance})

    async with await market.connect(instance) as box:
        assert box.get_server_host_key() != before
        assert "kept" in str((await box.run("ls")).stdout)
    assert await ports(market, instance) == where


async def test_another_address(market: SandboxProcess) -> None:
    """Other ports, another address for the direct one; what runs there goes on and the host key stays."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        key = box.get_server_host_key()
        await box.run("setsid sh -c 'sleep 1; touch went-on' >/dev/null 2>&1 &")
    before = await ports(market, instance)

    await market.fault("endpoint_moves", params={"instance": instance})

    row = await market.show(instance)
    assert row is not None and row["public_ipaddr"] == "127.0.0.2 "
    direct, proxy = await ports(market, instance)
    assert not {direct, proxy} & set(before)

    async def there() -> asyncssh.SSHClientConnection | None:
        try:
            return await asyncssh.connect(
                "127.0.0.2", direct, username="root", client_keys=[market.key], known_hosts=None, config=None,
                agent_path=None,
            )  # fmt: skip
        except (OSError, asyncssh.Error):
            return None

    moved = await until(there)
    assert moved is not None and moved.get_server_host_key() == key
    async with moved:

        async def went_on() -> bool:
            return (market.home(instance) / "went-on").exists()

        await until(went_on)


async def test_a_port_that_somebody_took(market: SandboxProcess) -> None:
    """While sshd is down another process may listen where it did: it comes back on other ports."""
    instance = await market.rent()
    async with await market.connect(instance):
        before = await ports(market, instance)
    await market.fault("ssh_refused", params={"instance": instance, "seconds": FOR_EVER})

    async def taken() -> socket.socket | None:
        try:
            return socket.create_server(("127.0.0.1", before[0]))
        except OSError:  # not down yet
            return None

    with await until(taken) as squatter:
        assert squatter is not None
        await market.fault("ssh_refused", params={"instance": instance, "seconds": 0.0})

        async def moved() -> bool:
            return before[0] not in await ports(market, instance)

        await until(moved)
        async with await market.connect(instance):
            pass


async def test_a_mute_door(market: SandboxProcess) -> None:
    """One door accepts and says nothing while the other works; what was held back arrives when it speaks again."""
    instance = await market.rent()
    box = await market.connect(instance)
    direct, proxy = await ports(market, instance)
    order = await market.fault("ssh_mute", params={"instance": instance, "seconds": 600.0, "door": "direct"})

    async def mute() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", direct)
        try:
            async with asyncio.timeout(0.5):
                return await reader.read(4) == b""
        except TimeoutError:  # slow, or mute
            return await struck(market, order) == 1
        finally:
            writer.close()

    await until(mute)
    asked = asyncio.create_task(box.run("echo late"))
    async with await market.login(proxy) as other:
        assert (await other.run("echo up")).stdout == "up\n"
    assert not asked.done() and await struck(market, order) == 1

    await market.fault("ssh_mute", params={"instance": instance, "seconds": 0.0})

    assert (await asyncio.wait_for(asked, 60)).stdout == "late\n"
    box.close()
    await box.wait_closed()


async def test_a_slow_line(market: SandboxProcess) -> None:
    """So many bytes take at least as long as ordered, and arrive whole."""
    instance = await market.rent()
    async with await market.connect(instance) as box:
        await market.fault("ssh_slow", params={"instance": instance, "seconds": 600.0, "bytes_per_s": 100_000.0})

        async def order_read() -> bool:
            began = time.monotonic()
            await box.run("head -c 40000 /dev/zero", encoding=None)
            return time.monotonic() - began > 0.35

        await until(order_read)
        began = time.monotonic()
        result = await box.run("head -c 100000 /dev/zero", encoding=None)

    assert result.stdout == bytes(100_000)
    assert time.monotonic() - began > 0.9


async def test_one_wrong_bit(market: SandboxProcess) -> None:
    """Exactly one read of a file of the name is wrong in one bit, other files never; the file on the disk is right."""
    instance = await market.rent()
    content = bytes(range(256)) * 64
    async with await market.connect(instance) as box, box.start_sftp_client() as sftp:
        for name in ("model.gguf", "other.txt"):
            async with sftp.open(name, "wb") as file:
                await file.write(content)

        async def read(name: str) -> bytes:
            async with sftp.open(name, "rb") as file:
                return bytes(await file.read())

        order = await market.fault("byte_flipped", params={"instance": instance})

        async def wrong() -> bytes:
            assert await read("other.txt") == content
            got = await read("model.gguf")
            return b"" if got == content else got

        got = await until(wrong)
        again = await read("model.gguf")

    assert sum((a ^ b).bit_count() for a, b in zip(got, content, strict=True)) == 1
    assert again == content == (market.home(instance) / "model.gguf").read_bytes()
    assert await struck(market, order) == 1


async def test_tmux_swallows_commands(market: SandboxProcess) -> None:
    """A command's output and effect are lost until the file is there, which SFTP or onstart can put there."""
    instance = await market.rent()
    async with await market.connect(instance) as box, box.start_sftp_client() as sftp:
        await market.fault("tmux", params={"instance": instance})

        async def swallowed() -> bool:
            return (await box.run("echo heard")).stdout == ""

        await until(swallowed)
        await box.run("touch never")
        async with sftp.open(".no_auto_tmux", "wb"):
            pass

        assert (await box.run("echo heard; ls never")).stdout == "heard\n"


async def test_a_cut_is_reported_when_it_strikes(market: SandboxProcess) -> None:
    """Ordered for later, it has not struck; when the bytes have passed, it has."""
    instance = await market.rent()
    box = await market.connect(instance)
    order = await market.fault("ssh_cut", params={"instance": instance, "after_bytes": 200_000})
    assert await struck(market, order) == 0

    async def cut() -> bool:
        try:
            await box.run("head -c 100000 /dev/zero", encoding=None)
        except (asyncssh.Error, OSError):
            return True
        return False

    await until(cut)

    async def reported() -> bool:
        return await struck(market, order) == 1

    await until(reported)
