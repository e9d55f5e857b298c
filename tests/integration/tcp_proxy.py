"""A TCP proxy on loopback that counts bytes and cuts connections on order: the weather between home and box."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType

BLOCK = 64 << 10


class CuttingProxy:
    """`async with CuttingProxy(port) as proxy`: connect to `proxy.port`.

    `cut_every` bytes (both directions together) all connections are reset, at most `cuts` times.
    """

    def __init__(self, target: int, *, cut_every: int = 0, cuts: int = 0) -> None:
        self._target = target
        self._cut_every = cut_every
        self._cuts_left = cuts
        self._next_cut = cut_every
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.up = 0
        self.down = 0
        self.connections = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        while self._writers:
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there_writer}
        try:
            await asyncio.gather(self._pump(reader, there_writer, up=True), self._pump(there_reader, writer, up=False))
        finally:
            self._writers -= {writer, there_writer}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        try:
            while block := await source.read(BLOCK):
                if up:
                    self.up += len(block)
                else:
                    self.down += len(block)
                if self._cuts_left and self.up + self.down >= self._next_cut:
                    self._cuts_left -= 1
                    self._next_cut += self._cut_every
                    self.cut()
                    return
                sink.write(block)
                await sink.drain()
        except ConnectionError:
            pass  # one side is gone: so is the other, below
        finally:
            sink.transport.abort() if sink.transport.is_closing() else sink.close()
