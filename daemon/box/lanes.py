"""Several connections working off one list of blocks: the engine under upload, download and rescue.

A block is one SFTP request. Each lane is a connection with many requests outstanding, since a request costs a round
trip and a single connection is bound by window / round trip. When a lane's link dies its outstanding blocks go back to
the list and the lane dials again; nothing else is lost, because what arrived belongs to the transfer, not to the lane.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar, cast

import asyncssh

from daemon.box.link import Link, translated
from daemon.errors import LinkLost, TransferFailed

BLOCK_BYTES = 261_120  # OpenSSH's longest read or write; a longer read comes back short and stalls the pipeline
READS = 24  # outstanding per lane: 6.3 MB in flight, so that four lanes fill 1 Gbit/s at 150 ms
WRITES = 8  # outstanding per lane: sshd's own window of 2 MiB lets no more through, and a cut costs what is in flight
MAX_LANES = 4  # more at once meet sshd's MaxStartups
LANE_BYTES = 16 << 20  # a further lane pays from here on
STALL_S = 30.0  # requests outstanding and not one block moved: the server hangs though its keepalives may answer
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0  # between two attempts to dial

Block = TypeVar("Block")
Dial = Callable[[], Awaitable[Link]]


def lanes_for(size: int) -> int:
    """How many connections `size` bytes are worth."""
    return min(MAX_LANES, 1 + size // LANE_BYTES)


class Lane:
    """One connection of a transfer with the remote files it has open."""

    def __init__(self, link: Link, sftp: asyncssh.SFTPClient) -> None:
        self._link = link
        self._sftp = sftp
        self._longest = min(BLOCK_BYTES, sftp.limits.max_read_len, sftp.limits.max_write_len)
        self._files: dict[str, asyncssh.SFTPClientFile] = {}
        self._opening = asyncio.Lock()
        self.moved = 0  # blocks

    async def read(self, path: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises TransferFailed when the file ends before."""
        with translated(f"{self._link.name}: read {path}"):
            file = await self._file(path, asyncssh.FXF_READ)
            parts: list[bytes] = []
            while size:
                part = cast(bytes, await file.read(min(size, self._longest), offset))
                if not part:
                    raise TransferFailed(f"{self._link.name}: {path} ends at {offset} bytes")
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
                self._link.count(0, len(part))
        self.moved += 1
        return b"".join(parts)

    async def size(self, path: str) -> int | None:
        """The file's size in bytes, None when it is not there."""
        with translated(f"{self._link.name}: look at {path}"):
            try:
                attributes = await self._sftp.stat(path)
            except asyncssh.SFTPNoSuchFile:  # which is an answer here
                return None
        return attributes.size

    async def write(self, path: str, offset: int, block: bytes) -> None:
        """Write into the file that is already there, at its place: writing twice is harmless."""
        with translated(f"{self._link.name}: write {path}"):
            file = await self._file(path, asyncssh.FXF_WRITE)
            for start in range(0, len(block), self._longest):
                part = block[start : start + self._longest]
                await file.write(part, offset + start)
                self._link.count(len(part), 0)
        self.moved += 1

    async def _file(self, path: str, flags: int) -> asyncssh.SFTPClientFile:
        async with self._opening:
            if path not in self._files:
                # block_size=0: one read() is one request, not a pipeline of its own
                self._files[path] = await self._sftp.open(path, flags, encoding=None, block_size=0)
            return self._files[path]

    def abort(self) -> None:
        self._link.abort()


class Traffic(Generic[Block]):
    """`todo` worked off by `count` lanes with `outstanding` blocks under way on each.

    `move` carries one block and may append to `todo`. `on_lost` hears of each block that has to be carried again.
    After `patience_s` without one block moved anywhere, `run` raises the LinkLost it met; every other error at once.
    """

    def __init__(
        self,
        todo: deque[Block],
        move: Callable[[Lane, Block], Awaitable[None]],
        dial: Dial,
        *,
        count: int,
        outstanding: int,
        patience_s: float,
        on_lost: Callable[[Block], None] = lambda block: None,
    ) -> None:
        self._todo = todo
        self._move = move
        self._dial = dial
        self._count = count
        self._outstanding = outstanding
        self._patience_s = patience_s
        self._on_lost = on_lost
        self._last_moved = 0.0

    async def run(self) -> None:
        self._last_moved = asyncio.get_running_loop().time()
        lanes = [asyncio.create_task(self._keep_lane()) for _ in range(self._count)]
        try:
            await asyncio.gather(*lanes)
        finally:
            await end_all(lanes)

    async def _keep_lane(self) -> None:
        """One lane, over as many connections as it takes."""
        pause_s = FIRST_PAUSE_S
        while self._todo:
            before = self._last_moved
            try:
                await self._one_connection()
            except LinkLost:
                if asyncio.get_running_loop().time() - self._last_moved > self._patience_s:
                    raise
                pause_s = FIRST_PAUSE_S if self._last_moved > before else min(2 * pause_s, LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _one_connection(self) -> None:
        link = await self._dial()
        try:
            await self._drive(Lane(link, await link.sftp()))
        finally:
            link.abort()

    async def _drive(self, lane: Lane) -> None:
        """Keep `outstanding` requests going until nothing is left; raise LinkLost once all of them came to an end."""
        movers = [asyncio.create_task(self._mover(lane)) for _ in range(self._outstanding)]
        waiting, seen, lost = set(movers), -1, None
        try:
            while waiting:
                ended, waiting = await asyncio.wait(waiting, timeout=STALL_S, return_when=asyncio.FIRST_EXCEPTION)
                for error in (task.exception() for task in ended):
                    if isinstance(error, LinkLost):
                        lost = error
                    elif error is not None:
                        raise error
                if lost or (not ended and lane.moved == seen):
                    lane.abort()
                seen = lane.moved
        finally:
            await end_all(movers)
        if lost:
            raise lost

    async def _mover(self, lane: Lane) -> None:
        while self._todo:
            block = self._todo.popleft()
            try:
                await self._move(lane, block)
            except LinkLost:
                self._todo.appendleft(block)
                self._on_lost(block)
                raise
            self._last_moved = asyncio.get_running_loop().time()


async def end_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel what still runs and wait for it, so that no task outlives its transfer and no exception goes unread."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
