"""One SSH connection to a box: opened with a checked host key, commands framed, every library error translated here.

Nothing of the user's SSH set-up leaks in: no configuration file, no agent, no known_hosts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import asyncssh

from daemon.box.address import BoxAddress
from daemon.box.command import SHELL, Reply, framed, unframed
from daemon.box.meter import CountBytes
from daemon.box.ranges import RangeReader
from daemon.errors import AccessDenied, HostKeyChanged, LinkLost, Overdue, RemoteFailed, TransferFailed

WINDOW = 16 << 20  # bytes; asyncssh moves window / (2 round trips), so its default of 2 MiB gives 7 MB/s at 150 ms
MAX_PACKET = 261_120  # bytes; OpenSSH takes 256 KiB a packet, headers included
REKEY_BYTES = "4G"  # the default of 1 GiB stalls the connection for some round trips each time
KEEPALIVE_S = 10
KEEPALIVE_COUNT = 2  # a silent link is dead after KEEPALIVE_S * (KEEPALIVE_COUNT + 1)
CONNECT_TIMEOUT_S = 15
LOGIN_TIMEOUT_S = 30
CLOSE_S = 10  # for the box to close a channel that we gave up
COMPLAINT_BYTES = 8 << 10  # of stderr, its end
HOST_KEY_ALGS = ["ssh-ed25519"]  # at the proof and ever after: another type would read as a changed key
CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr"]


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what asyncssh and the network raise into the daemon's errors. Local file access must stay outside of it."""
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        raise HostKeyChanged(f"{doing}: the host key is not the pinned one") from error
    except asyncssh.PermissionDenied as error:
        raise AccessDenied(f"{doing}: our key is not accepted") from error
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
        raise LinkLost(f"{doing}: {error.reason}") from error
    except asyncssh.SFTPError as error:
        raise TransferFailed(f"{doing}: {error.reason}") from error
    except TimeoutError as error:
        raise LinkLost(f"{doing}: no answer in time") from error
    except (OSError, asyncssh.Error) as error:
        raise LinkLost(f"{doing}: {error}") from error


@contextmanager
def within(link: Link, seconds: float) -> Iterator[None]:
    """Drop `link` when what is done over it takes longer. A cancel would not do: closing a file waits for an answer."""
    timer = asyncio.get_running_loop().call_later(seconds, link.abort)
    try:
        yield
    finally:
        timer.cancel()


class _AnyHostKey(asyncssh.SSHClient):
    """For the one connection that proves the host key: every key is taken, nothing is sent before the challenge."""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return True


async def connect(address: BoxAddress, key: asyncssh.SSHKey, count: CountBytes) -> Link:
    """Log in at the first endpoint that answers.

    With a pinned key the key exchange itself refuses another host. Without one the caller must run the challenge first.
    Raises HostKeyChanged at once, AccessDenied when an endpoint refused our key and none took it, else LinkLost.
    """
    failures: list[LinkLost | AccessDenied] = []
    for host, port in address.endpoints:
        try:
            return await _dial(address, host, port, key, count)
        except (LinkLost, AccessDenied) as error:
            failures.append(error)
    failures.sort(key=lambda error: isinstance(error, LinkLost))
    raise failures[0] if failures else LinkLost(f"instance {address.instance_id}: no address to connect to")


async def _dial(address: BoxAddress, host: str, port: int, key: asyncssh.SSHKey, count: CountBytes) -> Link:
    pinned = [asyncssh.import_public_key(address.host_key)] if address.host_key else []
    with translated(f"instance {address.instance_id}: ssh to {host}:{port}"):
        connection = await asyncssh.connect(
            host,
            port,
            config=None,
            agent_path=None,
            client_keys=[key],
            known_hosts=(pinned, [], []),
            client_factory=asyncssh.SSHClient if pinned else _AnyHostKey,
            server_host_key_algs=HOST_KEY_ALGS,
            username=address.user,
            preferred_auth="publickey",
            encryption_algs=CIPHERS,
            compression_algs=None,
            window=WINDOW,
            max_pktsize=MAX_PACKET,
            rekey_bytes=REKEY_BYTES,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
            connect_timeout=CONNECT_TIMEOUT_S,
            login_timeout=LOGIN_TIMEOUT_S,
        )
    return Link(connection, f"instance {address.instance_id}", count)


class Link:
    """A live connection. Once it is lost every call raises LinkLost; whoever holds it dials a new one."""

    def __init__(self, connection: asyncssh.SSHClientConnection, name: str, count: CountBytes) -> None:
        self._connection = connection
        self._sftp: asyncssh.SFTPClient | None = None
        self._starting = asyncio.Lock()
        self.name = name
        self.count = count

    @property
    def is_open(self) -> bool:
        return not self._connection.is_closed()

    @property
    def host_key(self) -> str:
        """The key that this connection's key exchange was signed with, as an OpenSSH line without comment."""
        key = self._connection.get_server_host_key()
        if key is None:
            raise HostKeyChanged(f"{self.name}: the server showed no host key")
        return " ".join(key.export_public_key("openssh").decode().split()[:2])

    async def sftp(self) -> asyncssh.SFTPClient:
        """The SFTP channel, started on first use."""
        async with self._starting:
            if self._sftp is None:
                with translated(f"{self.name}: start sftp"):
                    async with asyncio.timeout(LOGIN_TIMEOUT_S):
                        self._sftp = await self._connection.start_sftp_client()
            return self._sftp

    async def ranges(self) -> RangeReader:
        """A further SFTP channel, for reading ranges of files."""
        with translated(f"{self.name}: start sftp"):
            async with asyncio.timeout(LOGIN_TIMEOUT_S):
                _, reader = await self._connection.create_session(RangeReader, subsystem="sftp", encoding=None)
        return cast(RangeReader, reader)

    async def call(
        self,
        script: str,
        *,
        timeout_s: float,
        limit: int,
        folder: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Reply:
        """Run a shell script on the box and wait for its end; its exit code is the caller's to judge.

        Raises LinkLost when the connection died (the script may have run), Overdue when nothing came in time,
        RemoteFailed when it printed more than `limit` bytes or was never run by the login shell.
        """
        mark = f"homeport-{secrets.token_hex(16)}"
        text = framed(script, mark, folder=folder, env=env or {}).encode()
        # The time-out alone would not do: leaving the process waits, without an end, until the box closes its channel.
        with translated(f"{self.name}: run a command"), within(self, timeout_s + CLOSE_S):
            try:
                async with asyncio.timeout(timeout_s) as time_set:
                    async with self._connection.create_process(SHELL, encoding=None) as process:
                        process.stdin.write(text)
                        process.stdin.write_eof()
                        printed, complaint = await asyncio.gather(
                            self._capped(process.stdout, limit), _tail(process.stderr, COMPLAINT_BYTES)
                        )
                        await process.wait_closed()
            except TimeoutError as error:
                if not time_set.expired():  # the network's own word (ETIMEDOUT): the connection is dead
                    raise
                # A dead one is found by its keepalives, long before.
                raise Overdue(f"{self.name}: a command did not end in {timeout_s:.0f} s") from error
        self.count(len(text), len(printed) + len(complaint))
        reply = unframed(printed, complaint, mark)
        if reply is not None:
            return reply
        if process.exit_status is None and process.exit_signal is None:
            # A dead link ends the process object without an error: without this line it reads as a finished command.
            raise LinkLost(f"{self.name}: the connection was lost during a command")
        noise = (printed[-1000:] + complaint[-1000:]).decode("utf-8", "replace")
        raise RemoteFailed(
            f"{self.name}: the login shell did not run the command",
            exit_code_remote=process.exit_status if process.exit_status is not None else -1,
            output=noise,
        )

    async def _capped(self, stream: asyncssh.SSHReader[bytes], limit: int) -> bytes:
        printed = bytearray()
        while block := await stream.read(64 << 10):
            printed += block
            if len(printed) > limit:
                self.abort()  # closing the channel alone would have us receive the rest
                raise RemoteFailed(f"{self.name}: a command printed more than {limit} bytes", exit_code_remote=-1)
        return bytes(printed)

    def abort(self) -> None:
        """Drop the connection now. A polite close would wait for an answer that a dead link never gives."""
        self._connection.abort()


async def _tail(stream: asyncssh.SSHReader[bytes], size: int) -> bytes:
    kept = b""
    while block := await stream.read(64 << 10):
        kept = (kept + block)[-size:]
    return kept
