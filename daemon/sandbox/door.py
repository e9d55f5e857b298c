"""The market's listening socket, which the fault `unreachable` closes for a while."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

HOST = "127.0.0.1"
ANSWER_S = 0.2  # between the order and the shutting


def listen(port: int) -> socket.socket:
    """A listening socket: connections are taken from this moment, before the server runs."""
    listener = socket.socket()
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen(128)
    return listener


@dataclass
class Door:
    """Opens and shuts one port. `servers` is the list that the HTTP server closes when it ends."""

    port: int
    protocol: Callable[[], asyncio.Protocol]
    drop_all: Callable[[], None]
    servers: Callable[[], list[asyncio.base_events.Server]]
    _reopening: set[asyncio.Task[None]] = field(default_factory=set)

    async def shut(self, seconds: float) -> None:
        """Refuse every connection for so long, beginning in a moment: whoever ordered it still gets its answer."""
        task = asyncio.create_task(self._shut(seconds))
        self._reopening.add(task)
        task.add_done_callback(self._reopening.discard)

    async def _shut(self, seconds: float) -> None:
        await asyncio.sleep(ANSWER_S)
        for server in self.servers():
            server.close()
        self.servers().clear()
        self.drop_all()
        await asyncio.sleep(seconds)
        loop = asyncio.get_running_loop()
        self.servers().append(await loop.create_server(self.protocol, sock=listen(self.port)))
