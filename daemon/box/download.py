"""A manifest's files brought home by chunks that are hashed before they count.

Every interruption is the same case: what is durable stays, what is missing is asked for again. Cuts are mended inside;
a dead process, a power cut or a lost hour on the link are mended by calling `download` again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from daemon.box.lanes import BLOCK_BYTES, READS, Dial, Lane, Traffic, end_all, lanes_for
from daemon.box.pace import Pace
from daemon.box.part import PartFile, bitmap_of
from daemon.errors import TransferFailed
from remote_payload import contract
from remote_payload.contract import ContractError, Manifest

TRIES = 3  # for one chunk: a hash that is wrong three times is not the network's doing
COMMIT_BYTES = 64 << 20  # written and not yet durable: what a power cut may cost
COMMIT_S = 2.0
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
class TransferProgress:
    """Bytes of all files: verified and on disk, in total, asked for more than once; and chunks that hashed wrong."""

    done: int
    total: int
    resent: int
    bad: int


@dataclass(frozen=True)
class _Block:
    """One SFTP request: `size` bytes from `start` within a chunk."""

    part: PartFile
    chunk: int
    start: int
    size: int


class _OpenChunk:
    """A chunk some blocks of which have arrived. It belongs to the download: a dead lane takes nothing with it."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.left = size

    def fill(self, start: int, block: bytes) -> None:
        self.content[start : start + len(block)] = block
        self.left -= len(block)


def names(manifest: Manifest) -> dict[str, PurePosixPath]:
    """Box path -> path at home, relative to run/out. Raises ContractError for a manifest that must not be followed."""
    if not 0 < manifest.chunk_size <= LARGEST_CHUNK:
        raise ContractError(f"manifest: chunk size {manifest.chunk_size} is outside 1..{LARGEST_CHUNK}")
    if len(manifest.files) > contract.MAX_FILES:
        raise ContractError(f"manifest: {len(manifest.files)} files are over the limit of {contract.MAX_FILES}")
    out = PurePosixPath(contract.RUN_DIR, contract.OUT_DIR)
    found: dict[str, PurePosixPath] = {}
    for file in manifest.files:
        path = contract.checked_path(file.path)
        if out not in path.parents:
            raise ContractError(f"manifest: {file.path} is not under {out}")
        if not 0 <= file.size <= contract.MAX_FILE_SIZE or len(file.chunks) != -(-file.size // manifest.chunk_size):
            raise ContractError(f"manifest: {file.path}: {len(file.chunks)} chunks do not make {file.size} bytes")
        found[file.path] = path.relative_to(out)
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
        progress: Callable[[TransferProgress], None],
        dial: Dial,
        patience_s: float,
        pace: Pace | None = None,
    ) -> None:
        self._root = root
        self._durable = durable
        self._progress = progress
        self._dial = dial
        self._patience_s = patience_s
        self._pace = pace
        home = names(manifest)
        self._parts = [PartFile(file, manifest.chunk_size, folder, home[file.path]) for file in manifest.files]
        self._todo: deque[_Block] = deque()
        self._open: dict[tuple[str, int], _OpenChunk] = {}
        self._tries: Counter[tuple[str, int]] = Counter()
        self._done = 0
        self._resent: Counter[str] = Counter()  # bytes, by file
        self._bad: Counter[str] = Counter()  # chunks, by file
        self._uncommitted = 0
        self._commit_due = asyncio.Event()

    async def run(self) -> None:
        """Raises LinkLost, TransferFailed, or OSError of the local disk; what is durable then is kept."""
        arriving = [part for part in self._parts if not await self._is_home(part)]
        await Traffic(
            deque(arriving), self._check_source, self._dial, count=1, outstanding=READS, patience_s=self._patience_s
        ).run()
        for part in arriving:
            await self._resume(part)
        while arriving:
            self._todo.extend(block for part in arriving for chunk in part.missing for block in _blocks(part, chunk))
            await self._carry(arriving)
            arriving = [part for part in arriving if not await self._bring_home(part)]
        self._report()

    async def _is_home(self, part: PartFile) -> bool:
        if not await asyncio.to_thread(part.is_finished):
            return False
        file, count = part.file, len(part.file.chunks)
        self._done += file.size
        self._durable.load(file.path, file.sha256, file.size, part.chunk_size)
        self._durable.record(file.path, bitmap_of(set(range(count)), count), complete=True, resent=0, bad=0)
        return True

    async def _resume(self, part: PartFile) -> None:
        file = part.file
        recorded = self._durable.load(file.path, file.sha256, file.size, part.chunk_size)
        self._bad[file.path] += await asyncio.to_thread(part.open, recorded)
        self._done += sum(part.span(chunk)[1] for chunk in part.written)

    async def _check_source(self, lane: Lane, part: PartFile) -> None:
        """A source that is absent, shorter or longer is another file: say so before the first byte."""
        file = part.file
        there = await lane.size(f"{self._root}/{file.path}")
        if there != file.size:
            found = "absent from the box" if there is None else f"{there} bytes on the box"
            raise TransferFailed(f"{file.path}: {found}, {file.size} bytes in the manifest")

    async def _carry(self, parts: list[PartFile]) -> None:
        """Work off `_todo`, making durable what arrives; also when it ends badly, nothing that arrived is lost."""
        traffic = Traffic(
            self._todo,
            self._move,
            self._dial,
            count=lanes_for(sum(block.size for block in self._todo)),
            outstanding=READS,
            patience_s=self._patience_s,
            on_lost=self._count_resent,
        )
        moving = asyncio.create_task(traffic.run())
        committing = asyncio.create_task(self._keep_committing(parts))
        try:
            ended, _ = await asyncio.wait({moving, committing}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()  # of `committing` only ever an error: it has no end of its own
        finally:
            await end_all((moving, committing))
            for part in parts:  # in this thread: a cancelled task must not leave it undone
                if part.sync():
                    self._record(part)

    async def _move(self, lane: Lane, block: _Block) -> None:
        if self._pace is not None:
            await self._pace.take(block.size)
        offset, size = block.part.span(block.chunk)
        content = await lane.read(f"{self._root}/{block.part.file.path}", offset + block.start, block.size)
        key = (block.part.file.path, block.chunk)
        if key not in self._open:
            self._open[key] = _OpenChunk(size)
        chunk = self._open[key]
        chunk.fill(block.start, content)
        if chunk.left:
            return
        # Awaited here, in the mover: a slow disk then slows the reads and buffers stay bounded.
        right = await asyncio.to_thread(block.part.store, block.chunk, chunk.content)
        del self._open[key]
        if right:
            self._done += size
            self._uncommitted += size
            if self._uncommitted >= COMMIT_BYTES:
                self._commit_due.set()
            self._report()
        else:
            self._count_bad(block.part, block.chunk)
            self._todo.extendleft(_blocks(block.part, block.chunk))

    def _count_bad(self, part: PartFile, chunk: int) -> None:
        path = part.file.path
        self._tries[path, chunk] += 1
        self._bad[path] += 1
        if self._tries[path, chunk] >= TRIES:
            raise TransferFailed(f"{path}: chunk {chunk} hashed wrong {TRIES} times")
        self._resent[path] += part.span(chunk)[1]

    def _count_resent(self, block: _Block) -> None:
        self._resent[block.part.file.path] += block.size

    async def _keep_committing(self, parts: list[PartFile]) -> None:
        while True:
            try:
                async with asyncio.timeout(COMMIT_S):
                    await self._commit_due.wait()
            except TimeoutError:
                pass  # the time is up: commit what there is
            self._commit_due.clear()
            self._uncommitted = 0
            for part in parts:
                if await asyncio.to_thread(part.sync):
                    self._record(part)

    def _record(self, part: PartFile, *, complete: bool = False) -> None:
        path = part.file.path
        self._durable.record(path, part.bitmap, complete=complete, resent=self._resent[path], bad=self._bad[path])

    async def _bring_home(self, part: PartFile) -> bool:
        """Re-read the whole file; give it its name, or have its damaged chunks fetched again."""
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
    _, size = part.span(chunk)
    for start in range(0, size, BLOCK_BYTES):
        yield _Block(part, chunk, start, min(BLOCK_BYTES, size - start))
