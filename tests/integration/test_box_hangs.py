"""A box whose sshd lives while its disk, or whoever answers in its place, does not play along."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import asyncssh
import pytest

from daemon.box import contact, link, rescue
from daemon.box.address import BoxAddress
from daemon.box.contact import Contact
from daemon.box.keys import own_key
from daemon.box.rescue import fetch_folder
from daemon.errors import BoxError, LinkLost, Overdue, RemoteFailed, TransferFailed


class Hanging(asyncssh.SFTPServer):
    """Opens files and reads none, as on a disk that went away, until the test is `over`."""

    over = asyncio.Event()

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:  # type: ignore[override]
        await self.over.wait()
        return b""

    async def close(self, file_obj: IO[bytes]) -> None:  # type: ignore[override]
        file_obj.close()
        await self.over.wait()

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        await self.over.wait()
        yield asyncssh.SFTPName(b"")


class Endless(asyncssh.SFTPServer):
    """Has a folder that is never listed to its end."""

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        for i in range(100_000):  # no test has the time for more
            yield asyncssh.SFTPName(b"%d" % i, attrs=asyncssh.SFTPAttrs(permissions=0o100644, size=0))


@asynccontextmanager
async def box(folder: Path, kind: type[asyncssh.SFTPServer], **more: Any) -> AsyncIterator[Contact]:
    """The way to a server of that kind whose root is `folder`/root."""
    ours, theirs = folder / "id_ed25519", folder / "host_key"
    own, host = own_key(ours), own_key(theirs)
    Hanging.over = asyncio.Event()
    (folder / "root/run").mkdir(parents=True)
    (folder / "root/run/log.txt").write_text("line\n")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(theirs)],
        authorized_client_keys=asyncssh.import_authorized_keys(own),
        sftp_factory=kind,
        **more,
    )
    address = BoxAddress(1, (("127.0.0.1", server.get_port()),), host, "", str(folder / "root"), "python")
    found = Contact(address, asyncssh.read_private_key(ours), lambda up, down: None)
    try:
        yield found
    finally:
        found.close()
        Hanging.over.set()
        server.close()
        await server.wait_closed()


ASKS: list[Callable[[Contact], object]] = [
    lambda to: to.read("run/log.txt", 100),
    lambda to: to.write_whole("run/job.json", b"{}"),
    lambda to: fetch_folder(to, "run", Path("home"), (), 1.0),
]


@pytest.mark.parametrize("ask", ASKS, ids=["read", "write", "list"])
async def test_a_server_that_says_nothing_is_out_of_contact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Contact], asyncio.Future[object]]
) -> None:
    """While the daemon waits for it nothing is decided, so no limit of money or time would hold."""
    monkeypatch.chdir(tmp_path)
    for module in (contact, rescue):
        monkeypatch.setattr(module, "FILE_S", 0.2)
    async with box(tmp_path, Hanging) as there:
        with pytest.raises(LinkLost):
            await asyncio.wait_for(ask(there), 10)


async def test_a_folder_without_end_is_refused(tmp_path: Path) -> None:
    """Its names are counted as they come: a list of all of them would be as long as memory lasts."""
    async with box(tmp_path, Endless) as there:
        with pytest.raises(TransferFailed, match="more than 4096 entries"):
            await asyncio.wait_for(fetch_folder(there, "run", tmp_path / "home", (), 1.0), 30)


async def test_a_box_that_never_closes_a_channel_is_out_of_contact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs a command for ever and answers no close: the deadline holds all the same."""

    async def runs_for_ever(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await Hanging.over.wait()

    monkeypatch.setattr(link, "CLOSE_S", 0.2)
    monkeypatch.setattr(asyncssh.channel.SSHServerChannel, "_close_send", lambda channel: None)
    async with box(tmp_path, Hanging, process_factory=runs_for_ever, encoding=None) as there:
        with pytest.raises(LinkLost):
            await asyncio.wait_for(there.shell("true", timeout_s=0.2), 10)


@pytest.mark.parametrize(("timeout_s", "error"), [(0.2, Overdue), (0.4, RemoteFailed)], ids=["looks", "has its time"])
async def test_a_command_that_hangs_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float, error: type[BoxError]
) -> None:
    """A card that hangs in a preflight: tried again for ever, its machine would bill for ever."""

    async def runs_for_ever(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await Hanging.over.wait()

    monkeypatch.setattr(contact, "ANSWER_S", 0.2)
    async with box(tmp_path, Hanging, process_factory=runs_for_ever, encoding=None) as there:
        with pytest.raises(error, match="did not end in"):
            await asyncio.wait_for(there.shell("true", timeout_s=timeout_s), 10)


async def test_a_connection_that_the_network_gave_up_is_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ETIMEDOUT is a TimeoutError, too: of our own network, so the machine is none the worse for it."""

    async def given_up(*_: object) -> bytes:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    async def runs_for_ever(process: asyncssh.SSHServerProcess[bytes]) -> None:
        await Hanging.over.wait()

    monkeypatch.setattr(link.Link, "_capped", given_up)
    async with box(tmp_path, Hanging, process_factory=runs_for_ever, encoding=None) as there:
        with pytest.raises(LinkLost) as raised:
            await asyncio.wait_for(there.shell("true", timeout_s=contact.ANSWER_S + 1), 10)

    assert not isinstance(raised.value, Overdue) and "no answer in time" in str(raised.value)
