"""L1: what lies on the disk hashes to what the manifest promised.

Every digest here is of bytes read back from the disk, never of a receive buffer: that is what makes it a proof. A file
whose numbers are to be judged too (L4) is read once for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from itertools import chain, cycle, repeat
from pathlib import Path

from daemon import platform
from daemon.artifacts.layout import local_path
from daemon.artifacts.levels import BYTES, Level, failed, passed
from daemon.artifacts.scan import PIECE, Scan
from remote_payload.contract import ArtifactFile

AHEAD = 32 << 20  # bytes asked of the disk before they are needed, so that it never waits for the hash
END = 8 << 20  # bytes at either end of a file that `ends` looks at


def sha256(path: Path, scan: Scan | None = None) -> str:
    """The sha256 of `path` as it lies on the disk. `scan`, of this very file, is shown every piece.

    A thread hashes one piece while this one reads the next, so that a fast disk waits for neither.
    """
    digest = hashlib.sha256()
    buffers = cycle([memoryview(bytearray(PIECE)), memoryview(bytearray(PIECE))])
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(1, "sha256") as hasher:
        platform.drop_cache(file.fileno())
        at = asked = 0
        hashed: Future[None] | None = None
        for length, concerned in chain(scan.pieces() if scan else (), repeat((PIECE, None))):
            if at + AHEAD >= asked:
                platform.read_ahead(file.fileno(), asked, AHEAD)
                asked += AHEAD
            piece = _read(file, next(buffers)[:length])
            if hashed is not None:
                hashed.result()
            if not piece:
                break
            hashed = hasher.submit(digest.update, piece)
            if concerned and len(piece) == length:  # a file cut off since it was parsed: its hash will say so
                concerned.see(piece)
            at += length
    return digest.hexdigest()


def ends(path: Path) -> str:
    """The sha256 of the first and the last bytes of `path` on the disk: a glance that costs milliseconds."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        platform.drop_cache(file.fileno())
        digest.update(file.read(END))
        file.seek(-min(END, path.stat().st_size), 2)
        digest.update(file.read(END))
    return digest.hexdigest()


def check(folder: Path, files: Sequence[ArtifactFile], scans: Mapping[str, Scan]) -> Level:
    """L1 for every file of the manifest, one read each; `scans` by the path in the manifest see what is read."""
    for promised in files:
        found = sha256(local_path(folder, promised.path), scans.get(promised.path))
        if found != promised.sha256:
            return failed(BYTES, f"{promised.path}: sha256 on disk is {found}, the manifest says {promised.sha256}")
    return passed(BYTES, {"bytes": sum(file.size for file in files)})


def _read(file: FileIO, buffer: memoryview) -> memoryview:
    """`buffer` filled from `file`; shorter at its end."""
    got = 0
    while got < len(buffer) and (count := file.readinto(buffer[got:])):
        got += count
    return buffer[:got]
