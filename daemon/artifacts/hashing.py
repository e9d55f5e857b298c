"""L1: what lies on the disk hashes to what the manifest promised.

Every digest here is of bytes read back from the disk, never of a receive buffer: that is what makes it a proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from daemon import platform
from daemon.artifacts.layout import local_path
from daemon.artifacts.levels import BYTES, Level, failed, passed
from remote_payload.contract import CHUNK_SIZE, ArtifactFile


@dataclass(frozen=True)
class Digest:
    """sha256 of a whole file and of each of its chunks (the last one shorter), with its size in bytes."""

    size: int
    sha256: str
    chunks: list[str]


def digest(path: Path, chunk_size: int = CHUNK_SIZE) -> Digest:
    """Read `path` from the disk, past the cache where the system allows it, and hash it whole and by chunk."""
    whole, chunks, size = hashlib.sha256(), [], 0
    with open(path, "rb") as file:
        platform.drop_cache(file.fileno())
        while chunk := file.read(chunk_size):
            whole.update(chunk)
            chunks.append(hashlib.sha256(chunk).hexdigest())
            size += len(chunk)
    return Digest(size, whole.hexdigest(), chunks)


def sha256(path: Path) -> str:
    """The sha256 of `path` as it lies on the disk."""
    with open(path, "rb") as file:
        platform.drop_cache(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def bad_chunks(path: Path, promised: ArtifactFile, chunk_size: int) -> list[int]:
    """Indices of the chunks of `path` that are missing or are not the promised ones: what to fetch again."""
    found = digest(path, chunk_size).chunks
    found += [""] * (len(promised.chunks) - len(found))
    return [i for i, want in enumerate(promised.chunks) if found[i] != want]


def check(folder: Path, files: Iterable[ArtifactFile]) -> Level:
    """L1 for every file of the manifest, one read each."""
    total = 0
    for promised in files:
        found = sha256(local_path(folder, promised.path))
        if found != promised.sha256:
            return failed(BYTES, f"{promised.path}: sha256 on disk is {found}, the manifest says {promised.sha256}")
        total += promised.size
    return passed(BYTES, {"bytes": total})
