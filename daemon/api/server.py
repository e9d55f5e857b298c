"""The daemon's front door: a unix socket of mode 0600, or loopback with a token where there are none.

Runs inside the daemon's own event loop and leaves signals to app.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from daemon import platform
from daemon.api.guard import Guard
from daemon.api.messages import Commands
from daemon.api.routes import application
from daemon.settings import Paths, Settings

STOP_S = 3  # an open connection does not keep the daemon from stopping


class Server:
    """`start` returns when requests are answered; `stop` when the last one is. The caller holds the daemon's lock."""

    def __init__(self, settings: Settings, commands: Commands, version: str) -> None:
        self.paths = settings.paths
        self._application = application(settings, commands, version)
        self._uvicorn: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None
        self._door = self.paths.socket  # or the file that names the port
        self._ours: tuple[int, ...] | None = None

    async def start(self) -> None:
        listener, token = listen(self.paths)
        self._door = self.paths.socket if token is None else self.paths.address
        self._ours = _identity(self._door)
        config = uvicorn.Config(
            Guard(self._application, token),
            http="h11",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=STOP_S,
        )
        self._uvicorn = _Uvicorn(config)
        self._task = asyncio.create_task(self._uvicorn.serve(sockets=[listener]), name="api")
        while not self._uvicorn.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        if self._uvicorn is None or self._task is None:
            return
        self._uvicorn.should_exit = True
        await self._task
        if _identity(self._door) == self._ours:  # a newer daemon may have put its own in the place of ours
            self._door.unlink(missing_ok=True)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(paths: Paths) -> tuple[socket.socket, str | None]:
    """(listening socket, token or None). What an earlier daemon left behind is replaced: its lock is ours."""
    paths.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if platform.unix_socket_fits(paths.socket):
        paths.socket.unlink(missing_ok=True)
        return platform.listen_unix(paths.socket), None
    listener = socket.create_server(("127.0.0.1", 0))
    token = secrets.token_urlsafe(32)
    _write_private(paths.address, json.dumps({"port": listener.getsockname()[1], "token": token}))
    return listener, token


def _identity(path: Path) -> tuple[int, ...] | None:
    """Of what lies at `path`. The time, too: an inode that was given back is soon given out again."""
    try:
        found = path.lstat()
    except FileNotFoundError:  # nothing is there, and so nothing of ours
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
