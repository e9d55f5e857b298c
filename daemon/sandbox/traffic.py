"""The bytes through a box's sshd: counted, reported for billing, and cut when a fault orders it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boxspec import TRAFFIC_FILE
from .disturbance import Disturbances
from .flow import Flow

if TYPE_CHECKING:  # the sandbox reads counts without the weight of an SSH library
    import asyncssh


@dataclass(frozen=True)
class Traffic:
    """Bytes into and out of a box since it was created."""

    bytes_in: int = 0
    bytes_out: int = 0

    @classmethod
    def read(cls, folder: Path) -> Traffic:
        """What the box reported last into its folder; nothing before its first connection."""
        file = folder / TRAFFIC_FILE
        return cls(**json.loads(file.read_text())) if file.exists() else cls()


class Meter:
    """Counts the bytes of every connection, and cuts them all when an ordered number has passed."""

    def __init__(self, folder: Path, disturbances: Disturbances, doors: dict[int, str]) -> None:
        """`doors`: direct or proxy, by port."""
        self._file = folder / TRAFFIC_FILE
        self._disturbances = disturbances
        self._doors = doors
        self._connections: set[asyncio.Transport] = set()
        self._reported = Traffic.read(folder)
        self._in, self._out = self._reported.bytes_in, self._reported.bytes_out
        self._cut_at: int | None = None
        self._cut_order: dict[str, Any] = {}
        self.cut_if_ordered()

    def attach(self, connection: asyncssh.SSHServerConnection) -> None:
        """Count what `connection` receives and sends; asyncssh has no hook for it, so both ends are wrapped."""
        transport: Any = connection._transport
        receive, send = connection.data_received, transport.write
        door = self._doors[transport.get_extra_info("sockname")[1]]

        def delay_s(size: int) -> float:
            return self._disturbances.delay_s(door, size)

        def received(chunk: bytes) -> None:
            if not transport.is_closing():
                self._in += len(chunk)
                receive(chunk)
                self._cut_if_due()

        def sent(chunk: bytes) -> None:
            if not transport.is_closing():  # what the server still answers on a dead line crosses none
                self._out += len(chunk)
                send(chunk)
                self._cut_if_due()

        inward, outward = Flow(received, delay_s), Flow(sent, delay_s)
        wrapped: Any = connection
        wrapped.data_received = lambda chunk, datatype=None: inward.pass_on(chunk)
        transport.write = outward.pass_on
        self._connections.add(transport)

    def cut(self) -> None:
        """Drop every connection without a word."""
        for transport in self._connections:
            transport.abort()
        self._connections.clear()

    def cut_if_ordered(self) -> None:
        """Take the order of the fault `ssh_cut`: after so many bytes from now."""
        if (order := self._disturbances.cut_ordered()) is not None:
            self._cut_order = order
            self._cut_at = self._in + self._out + int(order["after_bytes"])
            self._cut_if_due()

    def report(self) -> None:
        """Write the counts for the sandbox, whole."""
        now = Traffic(self._in, self._out)
        if now != self._reported:
            beside = self._file.with_suffix(".tmp")
            beside.write_text(json.dumps(asdict(now)))
            beside.replace(self._file)
            self._reported = now

    def _cut_if_due(self) -> None:
        if self._cut_at is not None and self._in + self._out >= self._cut_at:
            self._cut_at = None
            self._disturbances.report(self._cut_order)
            self.cut()
