"""Several connections working off one list of blocks: the engine under upload, download and rescue.

A block is one SFTP request. Each lane is a connection with many requests outstanding, since a request costs a round
trip and a single connection is bound by window / round trip; lanes are added for as long as that makes it faster. When
a lane's link dies its blocks go back and the lane dials again; nothing else is lost, because what arrived belongs to
the transfer, not to the lane. A lane that has nothing left takes over from one that lags.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import asyncssh

from daemon.box.link import Link, translated
from daemon.box.ranges import RangeReader
from daemon.errors import LinkLost, TransferFailed

BLOCK_BYTES = 261_120  # OpenSSH's longest read or write; a longer read comes back short and stalls the pipeline
BATCH_BLOCKS = 32  # blocks of one file that one lane takes at a time, so that neighbours stay together
READS = 24  # outstanding per lane: 6.3 MB in flight, so that four lanes fill 1 Gbit/s at 150 ms
WRITES = 8  # outstanding per lane: sshd's own window of 2 MiB lets no more through, and a cut costs what is in flight
SMALL_WRITES = 32  # of files far smaller than a block, whose round trips count and not their bytes
FIRST_LANES, MAX_LANES = 4, 8  # more at once meet sshd's MaxStartups
LANE_BYTES = 16 << 20  # a further lane pays from here on
OPEN_FILES = 32  # that a lane keeps open; a server's limit is often 1,024 for all of its lanes
GROW_S, GAIN = 1.5, 1.1  # a lane is added when the last one made this much of a difference for so long
LATE, LATE_S = 3.0, 2.0  # times the usual, and at least: at the end such a block is asked for on another lane too
TEND_S = 0.25
STALL_S = 30.0  # requests outstanding and not one block moved: the server hangs though its keepalives may answer
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0  # between two attempts to dial

Block = TypeVar("Block", bound=Hashable)
File = TypeVar("File")
Dial = Callable[[], Awaitable[Link]]


def lanes_for(size: int) -> int:
    """How many connections `size` bytes are worth to begin with."""
    return min(FIRST_LANES, 1 + size // LANE_BYTES)


def spans(start: int, size: int, step: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of the pieces, `step` bytes each but for the last, of `size` bytes from `start` on."""
    for offset in range(start, start + size, step):
        yield offset, min(step, start + size - offset)


@dataclass
class _Slot(Generic[File]):
    """A remote file with the number of its blocks that are under way; `file` is None until it is open."""

    file: File | None = None
    users: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)


class _Files(Generic[File]):
    """The remote files that a lane has open: many are opened at a time, each once, and not all are kept."""

    def __init__(self, opens: Callable[[str], Awaitable[File]], closes: Callable[[File], Awaitable[object]]) -> None:
        self._opens, self._closes = opens, closes
        self._slots: OrderedDict[str, _Slot[File]] = OrderedDict()  # the one used last comes last

    @asynccontextmanager
    async def using(self, path: str) -> AsyncIterator[File]:
        slot = self._slots.setdefault(path, _Slot())
        self._slots.move_to_end(path)
        slot.users += 1
        try:
            async with slot.opening:
                if slot.file is None:
                    slot.file = await self._opens(path)
            yield slot.file
        finally:
            slot.users -= 1
        await self._close_idle()

    async def _close_idle(self) -> None:
        excess = max(0, len(self._slots) - OPEN_FILES)
        idle = [path for path, slot in self._slots.items() if not slot.users][:excess]
        for slot in [self._slots.pop(path) for path in idle]:
            if slot.file is not None:
                await self._closes(slot.file)


class Lane:
    """One connection of a transfer with the remote files it has open."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._reader: RangeReader | None = None
        self._starting = asyncio.Lock()
        self._read = _Files(self._open_to_read, self._close_read)
        self._written = _Files(self._open_to_write, lambda file: file.close())

    async def read(self, path: str, offset: int, size: int, of: int) -> list[memoryview]:
        """Exactly `size` bytes of a file that has `of` in all. Raises TransferFailed when it has another size."""
        with translated(f"{self._link.name}: read {path}"):
            async with self._read.using(path) as (handle, there):
                if there != of:
                    raise TransferFailed(f"{self._link.name}: {path} has {there} bytes, not {of}")
                reader = await self._ranges()
                pieces: list[memoryview] = []
                while size:
                    asked = min(size, reader.longest, BLOCK_BYTES)
                    came = await reader.read(handle, offset, asked)
                    if not came:
                        raise TransferFailed(f"{self._link.name}: {path} ends at {offset} bytes")
                    count = sum(map(len, came))
                    pieces += came
                    offset, size = offset + count, size - count
                    self._link.count(0, count)
        return pieces

    async def write(self, path: str, offset: int, block: bytes) -> None:
        """Write into the file that is already there, at its place: writing twice is harmless."""
        with translated(f"{self._link.name}: write {path}"):
            longest = min(BLOCK_BYTES, (await self._link.sftp()).limits.max_write_len)
            async with self._written.using(path) as file:
                for start, size in spans(0, len(block), longest):
                    await file.write(block[start : start + size], offset + start)
                    self._link.count(size, 0)

    async def _ranges(self) -> RangeReader:
        async with self._starting:
            if self._reader is None:
                self._reader = await self._link.ranges()
            return self._reader

    async def _open_to_read(self, path: str) -> tuple[bytes, int | None]:
        return await (await self._ranges()).open(path)

    async def _close_read(self, file: tuple[bytes, int | None]) -> None:
        await (await self._ranges()).close(file[0])

    async def _open_to_write(self, path: str) -> asyncssh.SFTPClientFile:
        # block_size=0: one write() is one request, not a pipeline of its own
        return await (await self._link.sftp()).open(path, asyncssh.FXF_WRITE, encoding=None, block_size=0)

    def abort(self) -> None:
        self._link.abort()


@dataclass(eq=False)
class _Share(Generic[Block]):
    """What one connection has before it: blocks to ask for, and blocks asked for with the loop's time of asking.

    A block that waits to be admitted is asked for at infinity.
    """

    queue: deque[Block] = field(default_factory=deque)
    asked: dict[Block, float] = field(default_factory=dict)
    moved_at: float | None = None
    is_lost: bool = False

    def is_stalled(self, now: float) -> bool:
        """Every answer is overdue: the oldest question and the newest answer are both too long ago."""
        oldest = min(self.asked.values(), default=now)
        return now - max(oldest, self.moved_at or oldest) > STALL_S


async def _at_once(block: object) -> None:
    """Nothing holds a block up."""


class Traffic(Generic[Block]):
    """Batches of blocks worked off by a few lanes with `outstanding` blocks under way on each.

    A batch is taken by one lane, in order. `move` carries one block and may `add`; it may be called twice for one block
    and must not mind. `admit` is awaited before, and makes no block late by it. `on_again` hears of each block that is
    asked for once more. After `patience_s` without one block moved anywhere, `run` raises the LinkLost it met; every
    other error at once.
    """

    def __init__(
        self,
        batches: Iterable[Iterable[Block]],
        move: Callable[[Lane, Block], Awaitable[None]],
        dial: Dial,
        *,
        lanes: int,
        outstanding: int,
        patience_s: float,
        admit: Callable[[Block], Awaitable[None]] = _at_once,
        on_again: Callable[[Block], None] = lambda block: None,
        most: int = MAX_LANES,
    ) -> None:
        self._todo = deque(batches)
        self._move = move
        self._dial = dial
        self._lanes = lanes
        self._most = most
        self._outstanding = outstanding
        self._patience_s = patience_s
        self._admit = admit
        self._on_again = on_again
        self._returned: deque[Block] = deque()
        self._shares: list[_Share[Block]] = []
        self._doubled: set[Block] = set()
        self._work = asyncio.Event()
        self._moved = 0  # blocks
        self._moved_at = 0.0
        self._usual_s = 1.0  # between a block's asking and its arrival, a moving average
        self._mark = (0.0, 0)  # time, blocks moved: where the measuring of the pace began
        self._best = 0.0  # blocks a second

    def add(self, batch: Iterable[Block]) -> None:
        """To be moved before all others."""
        self._todo.appendleft(batch)
        self._work.set()

    async def run(self) -> None:
        if not self._todo:
            return
        self._moved_at = _now()
        lanes = {asyncio.create_task(self._keep_lane()) for _ in range(self._lanes)}
        try:
            while not self._is_done:
                ended, _ = await asyncio.wait(lanes, timeout=TEND_S, return_when=asyncio.FIRST_COMPLETED)
                for lane in ended:
                    lane.result()
                lanes -= ended
                if not lanes and not self._is_done:  # something was added as the last one ended
                    lanes.add(asyncio.create_task(self._keep_lane()))
                if not self._todo:
                    self._double_late_ones()
                elif self._wants_another(len(lanes)):
                    lanes.add(asyncio.create_task(self._keep_lane()))
        finally:
            await end_all(lanes)

    @property
    def _is_done(self) -> bool:
        return not (self._todo or self._returned or any(share.queue or share.asked for share in self._shares))

    async def _keep_lane(self) -> None:
        """One lane, over as many connections as it takes."""
        pause_s = 0.0
        while not self._is_done:
            share: _Share[Block] = _Share()
            try:
                await self._one_connection(share)
            except LinkLost:
                if _now() - self._moved_at > self._patience_s:
                    raise
                has_carried = share.moved_at is not None  # such a one is dialled again at once
                pause_s = 0.0 if has_carried else min(max(FIRST_PAUSE_S, 2 * pause_s), LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _one_connection(self, share: _Share[Block]) -> None:
        link = await self._dial()
        self._shares.append(share)
        try:
            await self._drive(Lane(link), share)
        finally:
            link.abort()
            self._shares.remove(share)
            self._take_back(share)

    def _take_back(self, share: _Share[Block]) -> None:
        """What a connection leaves undone is the others' now, unless one of them has asked for it as well."""
        left = [block for block in share.asked if not any(block in other.asked for other in self._shares)]
        for block in left:
            if share.asked[block] < math.inf:  # else it was never sent
                self._on_again(block)
        self._returned.extend([*left, *share.queue])
        self._work.set()

    async def _drive(self, lane: Lane, share: _Share[Block]) -> None:
        """Keep requests going until nothing is left; raise LinkLost once all of them came to an end.

        They are left to end by themselves, which they do at once on a dead link: one of them may be writing a chunk.
        """
        movers = [asyncio.create_task(self._mover(lane, share)) for _ in range(self._outstanding)]
        waiting, lost = set(movers), None
        try:
            while waiting:
                ended, waiting = await asyncio.wait(waiting, timeout=STALL_S / 10, return_when=asyncio.FIRST_EXCEPTION)
                for error in (task.exception() for task in ended):
                    if isinstance(error, LinkLost):
                        lost = error
                    elif error is not None:
                        raise error
                if lost or share.is_stalled(_now()):
                    share.is_lost = True
                    self._work.set()
                    lane.abort()
        finally:
            await end_all(movers)
        if lost:
            raise lost

    async def _mover(self, lane: Lane, share: _Share[Block]) -> None:
        while (block := await self._next(share)) is not None:
            share.asked[block] = math.inf
            await self._admit(block)
            if share.is_lost:
                return
            share.asked[block] = asked_at = _now()
            await self._move(lane, block)
            self._note(share, block, _now() - asked_at)

    async def _next(self, share: _Share[Block]) -> Block | None:
        while not (share.is_lost or self._is_done):
            if share.queue:
                return share.queue.popleft()
            if self._returned:
                return self._returned.popleft()
            if self._todo:
                share.queue.extend(self._todo.popleft())
            elif (fullest := max(self._shares, key=lambda other: len(other.queue))).queue:
                return fullest.queue.pop()
            else:
                self._work.clear()
                await self._work.wait()
        return None

    def _note(self, share: _Share[Block], block: Block, took_s: float) -> None:
        for other in self._shares:
            other.asked.pop(block, None)
        self._moved += 1
        self._moved_at = share.moved_at = _now()
        self._usual_s += 0.05 * (took_s - self._usual_s)
        if self._is_done:
            self._work.set()

    def _wants_another(self, lanes: int) -> bool:
        """Whether the newest lane made it faster, so that one more may. Measured while every lane carries."""
        now = _now()
        if lanes >= self._most or len(self._shares) < lanes or any(share.moved_at is None for share in self._shares):
            self._mark = (now, self._moved)
            return False
        since, before = self._mark
        if now - since < GROW_S:
            return False
        pace = (self._moved - before) / (now - since)
        self._mark = (now, self._moved)
        if pace <= GAIN * self._best:
            return False
        self._best = pace
        return True

    def _double_late_ones(self) -> None:
        """Nothing is left to begin: what takes far longer than usual is asked for by a lane that is free, once."""
        now = _now()
        for share in self._shares:
            for block, asked_at in share.asked.items():
                free = [o for o in self._shares if o is not share and len(o.asked) + len(o.queue) < self._outstanding]
                is_late = now - asked_at > max(LATE_S, LATE * self._usual_s)
                if is_late and free and block not in self._doubled:
                    self._doubled.add(block)
                    self._on_again(block)
                    min(free, key=lambda other: len(other.asked)).queue.append(block)
                    self._work.set()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def end_all(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel what still runs and wait for it, so that no task outlives its transfer and no exception goes unread."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
