"""A TCP proxy on loopback that counts bytes, limits their rate and cuts connections: the weather on the way home."""

from __future__ import annotations

import asyncio
import socket
import struct
from types import TracebackType

BLOCK = 64 << 10


class CuttingProxy:
    """`async with CuttingProxy(port) as proxy`: connect to `proxy.port`; `up` and `down` count what passed, in bytes.

    All connections are reset each time `cut_every` further bytes have passed, `cuts` times at most; with `stay_down`
    nothing gets through after the first cut. `rate` bounds each connection's direction, in bytes per second.
    """

    def __init__(
        self, target: int, *, cut_every: int = 0, cuts: int = 0, stay_down: bool = False, rate: int | None = None
    ) -> None:
        self._target = target
        self._cut_every = cut_every
        self._next_cut = cut_every
        self._stay_down = stay_down
        self._pause_s = BLOCK / rate if rate else 0
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._frozen: set[asyncio.StreamWriter] = set()
        self._is_down = False
        self.cuts_left = cuts
        self.port = 0
        self.up = 0
        self.down = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def freeze(self) -> None:
        """Keep every connection that is open now silent for ever, as after a sleep; new ones work."""
        self._frozen |= self._writers

    def cut_each(self, further: int, times: int) -> None:
        """From here on, reset all connections after each `further` bytes, so many times."""
        self._cut_every, self.cuts_left = further, times
        self._next_cut = self.up + self.down + further

    def cut(self) -> None:
        """Reset every connection that is open now."""
        self._is_down = self._stay_down
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_down:
            writer.transport.abort()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, there_writer}
        for source, sink, up in ((reader, there_writer, True), (there_reader, writer, False)):
            pump = asyncio.create_task(self._pump(source, sink, up))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool) -> None:
        try:
            while (block := await source.read(BLOCK)) and sink not in self._frozen:
                self.up, self.down = (self.up + len(block), self.down) if up else (self.up, self.down + len(block))
                if self.cuts_left and self.up + self.down >= self._next_cut:
                    self.cuts_left -= 1
                    self._next_cut += self._cut_every
                    self.cut()
                sink.write(block)
                await sink.drain()
                await asyncio.sleep(self._pause_s * len(block) / BLOCK)
        except ConnectionError:
            pass  # one side is gone, so is the other
        if sink not in self._frozen:
            sink.close()
