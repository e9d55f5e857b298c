"""One file on its way home: `<name>.part` on disk, which of its chunks are there, and when they are durable.

A chunk counts as written once its bytes are at their place, as durable once the file's data was synced after that. Only
the durable ones are recorded, and in that order: sync, then record. So a power cut at any moment leaves a record of
chunks that are on the platter; which bytes they are is never taken from the record.

Behind that, the file is read back from the disk, once and in order, and hashed: that is what proves it. A hash of what
arrives would prove less, for SSH has checked each packet already, and would cost as much again. The chunks' own hashes
are for what an earlier run claimed, and to find the chunk that is wrong when the file is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from daemon import platform
from daemon.box.room import reserve
from daemon.errors import TransferFailed
from remote_payload.contract import ArtifactFile

READ_BACK = 64 << 20  # bytes at a time
PAGE = 4096


class PartFile:
    """`file` of a manifest, arriving in `folder` as `name` + '.part'. Its methods block: call them in a thread."""

    def __init__(self, file: ArtifactFile, chunk_size: int, folder: Path, name: PurePosixPath) -> None:
        self.file = file
        self.chunk_size = chunk_size
        self.folder = folder
        self.final = folder / name
        self.path = part_of(self.final)
        self.written: set[int] = set()
        self.durable: set[int] = set()
        self.recorded: set[int] = set()  # by an earlier run
        self._claimed: set[int] = set()  # written by an earlier run, not proven by this one
        self._begin_reading()

    def _begin_reading(self) -> None:
        self._whole = hashlib.sha256()
        self._read = 0  # chunks, from the first on

    def span(self, chunk: int) -> tuple[int, int]:
        """Offset and size of a chunk in bytes; the last one is shorter."""
        offset = chunk * self.chunk_size
        return offset, min(self.chunk_size, self.file.size - offset)

    @property
    def missing(self) -> list[int]:
        return [chunk for chunk in range(len(self.file.chunks)) if chunk not in self.written]

    @property
    def has_news(self) -> bool:
        """Something was written since the last sync."""
        return self.written != self.durable

    @property
    def is_behind(self) -> bool:
        """There is something to read back."""
        return self._next_to_read() is not None

    def open(self, recorded: bytes) -> None:
        """Reserve the room, and claim what an earlier run wrote: the chunks of the bitmap `recorded`, and those that do
        not begin with a page of zeros, as what was reserved and never written does.

        So a killed process loses no chunk that it had not recorded yet, and a file of the same chunks under a new
        manifest is not fetched again. A file that has its final name is taken back. Raises OSError when the disk has no
        room.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.final.exists():
            self.final.chmod(0o600)  # a model folder that was not finished is read-only already
            self.final.replace(self.path)
        with self._descriptor() as fd:
            os.ftruncate(fd, min(os.fstat(fd).st_size, self.file.size))
            reserve(fd, self.path, self.file.size)
            chunks = range(len(self.file.chunks))
            begun = {chunk for chunk in chunks if self._is_begun(fd, chunk)}
        self.recorded = chunks_of(recorded, len(chunks))
        self.durable = set(self.recorded)
        self.written = begun | self.recorded
        self._claimed = set(self.written)

    def store(self, chunk: int, content: bytes | bytearray | memoryview) -> None:
        """Write a chunk at its place."""
        with self._descriptor() as fd:
            platform.pwrite(fd, memoryview(content), self.span(chunk)[0])
        self.written.add(chunk)

    def sync(self) -> None:
        """Make all that is written durable."""
        chunks = set(self.written)
        with self._descriptor() as fd:
            platform.sync_data(fd)
        self.durable = chunks

    @property
    def bitmap(self) -> bytes:
        """Of the durable chunks."""
        return bitmap_of(self.durable, len(self.file.chunks))

    def read_back(self) -> list[int]:
        """Read on from the disk, at most READ_BACK bytes. Claims that prove wrong are forgotten, and returned."""
        wrong = []
        buffer = memoryview(bytearray(self.chunk_size))
        with open(self.path, "rb", buffering=0) as file:
            platform.drop_cache(file.fileno())
            for _ in range(max(1, READ_BACK // self.chunk_size)):
                chunk = self._next_to_read()
                if chunk is None:
                    break
                offset, size = self.span(chunk)
                content = buffer[:size]
                file.seek(offset)
                if file.readinto(content) != size:
                    raise TransferFailed(f"{self.path} was cut short by somebody else")
                if chunk in self._claimed and hashlib.sha256(content).hexdigest() != self.file.chunks[chunk]:
                    self._forget([chunk])
                    wrong.append(chunk)
                    continue
                self._claimed.discard(chunk)
                if chunk == self._read:
                    self._whole.update(content)
                    self._read += 1
        return wrong

    def _next_to_read(self) -> int | None:
        """The next chunk of the file; while that is not there, the next claim, to know what has to be fetched."""
        return self._read if self._read in self.durable else min(self._claimed & self.durable, default=None)

    def damaged(self) -> list[int]:
        """Once all is read back: the chunks that the disk did not keep, forgotten, so that they are fetched again.

        Raises TransferFailed when every chunk is right and the whole is not: then the manifest contradicts itself.
        """
        if self._whole.hexdigest() == self.file.sha256:
            return []
        with self._descriptor() as fd:
            bad = [chunk for chunk in range(len(self.file.chunks)) if not self._is_right(fd, chunk)]
        if not bad:
            raise TransferFailed(f"{self.file.path}: its chunks are right, its sha256 is not the manifest's")
        self._forget(bad)
        self._begin_reading()
        return bad

    def finish(self) -> None:
        """Give the file its own name, durably, with every folder on the way to it."""
        with self._descriptor() as fd:
            platform.sync_file(fd)
        self.path.replace(self.final)
        for folder in self.final.parents:
            platform.sync_folder(folder)
            if folder == self.folder:
                break

    def _forget(self, chunks: list[int]) -> None:
        for known in (self.written, self.durable, self._claimed):
            known.difference_update(chunks)

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _is_begun(self, fd: int, chunk: int) -> bool:
        offset, size = self.span(chunk)
        return any(platform.pread(fd, min(PAGE, size), offset))

    def _is_right(self, fd: int, chunk: int) -> bool:
        offset, size = self.span(chunk)
        return hashlib.sha256(platform.pread(fd, size, offset)).hexdigest() == self.file.chunks[chunk]


def part_of(final: Path) -> Path:
    """Where a file lies until it is whole."""
    return final.with_name(f"{final.name}.part")


def bitmap_of(chunks: set[int], count: int) -> bytes:
    """Bit i, counted from the least significant bit of byte i // 8, is chunk i."""
    bitmap = bytearray((count + 7) // 8)
    for chunk in chunks:
        bitmap[chunk // 8] |= 1 << chunk % 8
    return bytes(bitmap)


def chunks_of(bitmap: bytes, count: int) -> set[int]:
    """The inverse of `bitmap_of`; bits beyond either end are no chunks."""
    return {i for i in range(min(count, len(bitmap) * 8)) if bitmap[i // 8] >> i % 8 & 1}
