"""A manifest's files brought home by chunks over several connections, and each proven by reading it back from the disk.

Every interruption is the same case: what is durable stays, what is missing is asked for again. Cuts are mended inside;
a dead process, a power cut or a lost hour on the link are mended by calling `download` again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from daemon.box.lanes import BLOCK_BYTES, READS, Dial, Lane, Traffic, end_all, lanes_for, spans
from daemon.box.pace import Pace
from daemon.box.part import PartFile
from daemon.box.progress import Follow, TransferProgress
from daemon.errors import TransferFailed
from remote_payload import contract
from remote_payload.contract import ContractError, Manifest

TRIES = 3  # for one chunk: a hash that is wrong three times is not the network's doing
COMMIT_BYTES = 32 << 20  # written and not yet durable: what a power cut may cost, and what is left to prove at the end
COMMIT_S = 2.0
STORING = 4  # chunks at once on their way to the disk: behind a slow one reads wait, and memory stays bounded
LARGEST_CHUNK = 64 << 20  # bytes; open chunks are held in memory


class DurableChunks(Protocol):
    """Where the durable set of each file is kept: one place, and it must survive a power cut."""

    def load(self, path: str, sha256: str, size: int, chunk_size: int) -> bytes:
        """Bitmap of this very file's durable chunks (bit i of byte i // 8 is chunk i); empty for another one."""
        ...

    def record(self, path: str, bitmap: bytes, *, complete: bool, resent: int, bad: int) -> None:
        """Replace it. `resent` (bytes) and `bad` (chunks) are this run's totals; `complete`: the file is home."""
        ...


@dataclass(frozen=True)
class _Block:
    """One SFTP request: `size` bytes from `start` within a chunk."""

    part: PartFile
    chunk: int
    start: int
    size: int


class _OpenChunk:
    """A chunk some blocks of which have arrived. It belongs to the download: a dead lane takes nothing with it."""

    def __init__(self, buffer: bytearray, size: int) -> None:
        self.buffer = buffer
        self.content = memoryview(buffer)[:size]
        self.left = size
        self.stored = asyncio.Event()
        self._has: set[int] = set()

    def fill(self, start: int, pieces: Iterable[memoryview]) -> bool:
        """Whether that completed the chunk. A block that is there already changes nothing."""
        if start in self._has:
            return False
        self._has.add(start)
        for piece in pieces:
            self.content[start : start + len(piece)] = piece
            start += len(piece)
            self.left -= len(piece)
        return self.left == 0


OUT = PurePosixPath(contract.RUN_DIR, contract.OUT_DIR)


def placed(manifest: Manifest, top: PurePosixPath = OUT) -> dict[str, PurePosixPath]:
    """Box path -> path at home, relative to `top`. Raises ContractError for a manifest that must not be followed."""
    if not 0 < manifest.chunk_size <= LARGEST_CHUNK:
        raise ContractError(f"manifest: chunk size {manifest.chunk_size} is outside 1..{LARGEST_CHUNK}")
    if len(manifest.files) > contract.MAX_FILES:
        raise ContractError(f"manifest: {len(manifest.files)} files are over the limit of {contract.MAX_FILES}")
    found: dict[str, PurePosixPath] = {}
    for file in manifest.files:
        path = contract.checked_path(file.path)
        if top not in path.parents:
            raise ContractError(f"manifest: {file.path} is not under {top}")
        if not 0 <= file.size <= contract.MAX_FILE_SIZE or len(file.chunks) != -(-file.size // manifest.chunk_size):
            raise ContractError(f"manifest: {file.path}: {len(file.chunks)} chunks do not make {file.size} bytes")
        found[file.path] = path.relative_to(top)
    _refuse_collisions([*found.values()], len(manifest.files))
    return found


def _refuse_collisions(paths: list[PurePosixPath], count: int) -> None:
    """No two files may share a name, also where case is folded, nor take another's `.part` or its folder."""
    folded = [str(path).casefold() for path in paths]
    taken = {*folded, *(f"{name}.part" for name in folded)}
    folders = {str(folder).casefold() for path in paths for folder in path.parents}
    if len(taken) != 2 * count or taken & folders:
        raise ContractError("manifest: two of its files would lie in one place")


class Download:
    """One run over the missing chunks of a manifest's files."""

    def __init__(
        self,
        manifest: Manifest,
        root: str,
        folder: Path,
        durable: DurableChunks,
        progress: Follow,
        dial: Dial,
        patience_s: float,
        pace: Pace | None = None,
        top: PurePosixPath = OUT,
    ) -> None:
        self._root = root
        self._durable = durable
        self._progress = progress
        self._dial = dial
        self._patience_s = patience_s
        self._pace = pace
        home = placed(manifest, top)
        self._parts = [PartFile(file, manifest.chunk_size, folder, home[file.path]) for file in manifest.files]
        self._traffic: Traffic[_Block] | None = None
        self._open: dict[tuple[str, int], _OpenChunk] = {}
        self._spare: list[bytearray] = []  # buffers of chunks: new memory for each costs as much as copying into it
        self._tries: Counter[tuple[str, int]] = Counter()
        self._done = 0
        self._resent: Counter[str] = Counter()  # bytes, by file
        self._bad: Counter[str] = Counter()  # chunks, by file
        self._storing = 0
        self._disk_takes = asyncio.Event()
        self._disk_takes.set()
        self._uncommitted = 0
        self._commit_due = asyncio.Event()

    async def run(self) -> None:
        """Raises LinkLost, TransferFailed, or OSError of the local disk; what is durable then is kept."""
        for part in self._parts:
            await self._resume(part)
        self._report()
        arriving = self._parts
        while arriving:
            await self._carry(arriving)
            arriving = [part for part in arriving if not await self._bring_home(part)]
        self._report()

    async def _resume(self, part: PartFile) -> None:
        file = part.file
        recorded = self._durable.load(file.path, file.sha256, file.size, part.chunk_size)
        await asyncio.to_thread(part.open, recorded)
        self._record(part)  # it may have been complete, and is not now
        self._done += sum(part.span(chunk)[1] for chunk in part.written)

    async def _carry(self, parts: list[PartFile]) -> None:
        """Fetch what is missing, making durable what arrives; also when it ends badly, nothing that arrived is lost."""
        missing = [(part, chunk) for part in parts for chunk in part.missing]
        self._traffic = Traffic(
            [_blocks(part, chunk) for part, chunk in missing],
            self._move,
            self._dial,
            lanes=lanes_for(sum(part.span(chunk)[1] for part, chunk in missing)),
            outstanding=READS,
            patience_s=self._patience_s,
            admit=self._admit,
            on_again=self._count_resent,
        )
        moving = asyncio.create_task(self._traffic.run())
        moving.add_done_callback(lambda _: self._commit_due.set())
        try:
            await self._keep(parts, moving)
            await moving
        finally:
            await end_all((moving,))
            for part in parts:  # in this thread: a cancelled task must not leave it undone
                if part.has_news:
                    part.sync()
                    self._record(part)

    async def _admit(self, block: _Block) -> None:
        if self._pace is not None:
            await self._pace.take(block.size)
        await self._disk_takes.wait()

    async def _move(self, lane: Lane, block: _Block) -> None:
        part, chunk = block.part, block.chunk
        offset, size = part.span(chunk)
        path = f"{self._root}/{part.file.path}"
        pieces = await lane.read(path, offset + block.start, block.size, of=part.file.size)
        if chunk in part.written:
            return  # another lane was faster
        key = (part.file.path, chunk)
        if key not in self._open:
            self._open[key] = _OpenChunk(self._spare.pop() if self._spare else bytearray(size), size)
        opened = self._open[key]
        if not opened.fill(block.start, pieces):
            if not opened.left:  # the other copy of this block completed it: not over before that is stored
                await opened.stored.wait()
            return
        try:
            await self._store(part, chunk, opened)
        finally:
            del self._open[key]
            opened.stored.set()
        if size == part.chunk_size:  # a smaller one, as of a file of one byte, would be of no use to another chunk
            self._spare.append(opened.buffer)
        self._done += size
        self._uncommitted += size
        if self._uncommitted >= COMMIT_BYTES:
            self._commit_due.set()
        self._report()

    async def _store(self, part: PartFile, chunk: int, opened: _OpenChunk) -> None:
        """Write it; while too many are at that, `_admit` lets no block through."""
        self._storing += 1
        if self._storing >= STORING:
            self._disk_takes.clear()
        try:
            await asyncio.to_thread(part.store, chunk, opened.content)
        finally:
            self._storing -= 1
            if self._storing < STORING:
                self._disk_takes.set()

    def _count_bad(self, part: PartFile, chunk: int) -> None:
        path = part.file.path
        self._tries[path, chunk] += 1
        self._bad[path] += 1
        self._record(part)
        if self._tries[path, chunk] >= TRIES:
            raise TransferFailed(f"{path}: chunk {chunk} hashed wrong {TRIES} times")
        self._resent[path] += part.span(chunk)[1]

    def _fetch_again(self, part: PartFile, chunk: int) -> None:
        if self._traffic is not None:
            self._traffic.add(_blocks(part, chunk))

    def _count_resent(self, block: _Block) -> None:
        self._resent[block.part.file.path] += block.size

    async def _keep(self, parts: list[PartFile], moving: asyncio.Task[None]) -> None:
        """Group commits while it moves and once after, and behind them the reading back."""
        is_last = False
        while not is_last:
            is_last = moving.done()
            self._commit_due.clear()
            self._uncommitted = 0
            for part in parts:
                if part.has_news:
                    await asyncio.to_thread(part.sync)
                    self._record(part)
                if part.is_behind:
                    for chunk in await self._read_back(part):
                        self._fetch_again(part, chunk)
            if is_last or moving.done() or any(part.is_behind for part in parts):
                continue
            try:
                async with asyncio.timeout(COMMIT_S):
                    await self._commit_due.wait()
            except TimeoutError:
                pass  # the time is up: commit what there is

    async def _read_back(self, part: PartFile) -> list[int]:
        """The chunks of an earlier run that proved wrong. Damage is what was recorded and is not there."""
        wrong = await asyncio.to_thread(part.read_back)
        for chunk in wrong:
            self._done -= part.span(chunk)[1]
            if chunk in part.recorded:
                self._count_bad(part, chunk)
        return wrong

    def _record(self, part: PartFile, *, complete: bool = False) -> None:
        path = part.file.path
        self._durable.record(path, part.bitmap, complete=complete, resent=self._resent[path], bad=self._bad[path])

    async def _bring_home(self, part: PartFile) -> bool:
        """Read the rest back from the disk; give the file its name, or have its damaged chunks fetched again."""
        while part.is_behind:
            await self._read_back(part)
        if part.missing:
            return False
        damaged = await asyncio.to_thread(part.damaged)
        for chunk in damaged:
            self._done -= part.span(chunk)[1]
            self._count_bad(part, chunk)
        if damaged:
            return False
        await asyncio.to_thread(part.finish)
        self._record(part, complete=True)
        return True

    def _report(self) -> None:
        total = sum(part.file.size for part in self._parts)
        self._progress(TransferProgress(self._done, total, self._resent.total(), self._bad.total()))


def _blocks(part: PartFile, chunk: int) -> Iterator[_Block]:
    for start, size in spans(0, part.span(chunk)[1], BLOCK_BYTES):
        yield _Block(part, chunk, start, size)
