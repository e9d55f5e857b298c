"""One file on its way home: `<name>.part` on disk, which of its chunks are there, and when they are durable.

A chunk counts as written once its sha256 is the manifest's and its bytes are at their place, as durable once the file's
data was synced after that. Only the durable ones are recorded, and in that order: sync, then record.
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


class PartFile:
    """`file` of a manifest, arriving in `folder` as `name` + '.part'. Its methods block: call them in a thread."""

    def __init__(self, file: ArtifactFile, chunk_size: int, folder: Path, name: PurePosixPath) -> None:
        self.file = file
        self.chunk_size = chunk_size
        self.folder = folder
        self.final = folder / name
        self.path = self.final.with_name(f"{name.name}.part")
        self.written: set[int] = set()
        self.durable: set[int] = set()

    def span(self, chunk: int) -> tuple[int, int]:
        """Offset and size of a chunk in bytes; the last one is shorter."""
        offset = chunk * self.chunk_size
        return offset, min(self.chunk_size, self.file.size - offset)

    @property
    def missing(self) -> list[int]:
        return [chunk for chunk in range(len(self.file.chunks)) if chunk not in self.written]

    def open(self, recorded: bytes) -> int:
        """Reserve the room, then believe only what re-hashes of the chunks in the bitmap `recorded`.

        A damaged file under the final name is taken back, all its chunks claimed. Returns how many claims were wrong.

        Raises OSError when the disk has no room.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        claimed = chunks_of(recorded, len(self.file.chunks))
        if self.final.exists():
            self.final.replace(self.path)
            claimed = set(range(len(self.file.chunks)))
        with self._descriptor() as fd:
            os.ftruncate(fd, min(os.fstat(fd).st_size, self.file.size))
            reserve(fd, self.path, self.file.size)
            self.written = {chunk for chunk in claimed if self._is_right(fd, chunk)}
        self.durable = set()
        return len(claimed) - len(self.written)

    def store(self, chunk: int, content: bytes | bytearray) -> bool:
        """Write a chunk at its place if it is the promised one; False if it is not, and then nothing is written."""
        if hashlib.sha256(content).hexdigest() != self.file.chunks[chunk]:
            return False
        with self._descriptor() as fd:
            platform.pwrite(fd, memoryview(content), self.span(chunk)[0])
        self.written.add(chunk)
        return True

    def sync(self) -> bool:
        """Make all that is written durable; False when nothing was written since the last time."""
        chunks = set(self.written)
        if chunks == self.durable:
            return False
        with self._descriptor() as fd:
            platform.sync_data(fd)
        self.durable = chunks
        return True

    @property
    def bitmap(self) -> bytes:
        """Of the durable chunks."""
        return bitmap_of(self.durable, len(self.file.chunks))

    def damaged(self) -> list[int]:
        """Read the whole file back from the disk. Chunks that are not the promised ones are forgotten and returned.

        Raises TransferFailed when every chunk is right and the whole is not: then the manifest contradicts itself.
        """
        with self._descriptor() as fd:
            platform.sync_data(fd)
            platform.drop_cache(fd)
        if _sha256(self.path) == self.file.sha256:
            return []
        with self._descriptor() as fd:
            bad = [chunk for chunk in range(len(self.file.chunks)) if not self._is_right(fd, chunk)]
        if not bad:
            raise TransferFailed(f"{self.file.path}: its chunks are right, its sha256 is not the manifest's")
        self.written -= set(bad)
        self.durable -= set(bad)
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

    def is_finished(self) -> bool:
        """Whether the file lies under its own name with the right size and hash."""
        final = self.final
        return final.is_file() and final.stat().st_size == self.file.size and _sha256(final) == self.file.sha256

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _is_right(self, fd: int, chunk: int) -> bool:
        offset, size = self.span(chunk)
        return hashlib.sha256(platform.pread(fd, size, offset)).hexdigest() == self.file.chunks[chunk]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bitmap_of(chunks: set[int], count: int) -> bytes:
    """Bit i, counted from the least significant bit of byte i // 8, is chunk i."""
    bitmap = bytearray((count + 7) // 8)
    for chunk in chunks:
        bitmap[chunk // 8] |= 1 << chunk % 8
    return bytes(bitmap)


def chunks_of(bitmap: bytes, count: int) -> set[int]:
    """The inverse of `bitmap_of`; bits beyond either end are no chunks."""
    return {i for i in range(min(count, len(bitmap) * 8)) if bitmap[i // 8] >> i % 8 & 1}
