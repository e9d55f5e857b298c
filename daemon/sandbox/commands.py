"""Runs the commands of SSH sessions as OpenSSH does: a command outlives its connection, its output arrives whole."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh

from .disturbance import Disturbances

PIECE = 256 << 10  # bytes carried at a time


def run_command(
    home: Path, env: dict[str, str], disturbances: Disturbances
) -> Callable[[asyncssh.SSHServerProcess[bytes]], Any]:
    """The coroutine that runs one session's command; it ends when the command has closed its output, as in OpenSSH."""

    async def run(session: asyncssh.SSHServerProcess[bytes]) -> None:
        command = ["-c", session.command] if session.command is not None else []
        if command and disturbances.swallows_commands(home):
            session.exit(0)
            return
        child = await asyncio.create_subprocess_exec(
            "/bin/bash", *command, cwd=home, env=env, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        feeding = asyncio.create_task(feed(session, child))
        try:
            await asyncio.gather(carry(child.stdout, session.stdout), carry(child.stderr, session.stderr))
            code = await child.wait()
        except (OSError, asyncssh.Error):  # the caller is gone, nobody is left to tell
            hang_up(child)
            return
        finally:
            feeding.cancel()
        if code < 0:
            session.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            session.exit(code)

    return run


def hang_up(child: asyncio.subprocess.Process) -> None:
    """The connection died: the command goes on, and meets a broken pipe if it writes, as under OpenSSH."""
    transport: Any = child._transport  # type: ignore[attr-defined]  # asyncio offers no other way to close one pipe
    for fd in (1, 2):
        transport.get_pipe_transport(fd).close()


async def carry(source: asyncio.StreamReader | None, target: asyncssh.SSHWriter[bytes]) -> None:
    """Bring a command's output to the client, no faster than the client reads."""
    while source is not None and (chunk := await source.read(PIECE)):
        target.write(chunk)
        await target.drain()


async def feed(session: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process) -> None:
    """Bring the client's input and signals to a command, until either side closes."""
    stdin = child.stdin
    if stdin is None:
        return
    with contextlib.suppress(OSError, asyncssh.Error):  # either side hung up: no more input comes
        while True:
            try:
                chunk = await session.stdin.read(PIECE)
            except asyncssh.SignalReceived as received:
                child.send_signal(signal.Signals[f"SIG{received.signal}"])
                continue
            if not chunk:
                break
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()
