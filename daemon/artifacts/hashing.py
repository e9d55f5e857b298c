"""L1: what lies on the disk hashes to what the manifest promised.

Every digest here is of bytes read back from the disk, never of a receive buffer: that is what makes it a proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from daemon import platform
from daemon.artifacts.layout import local_path
from daemon.artifacts.levels import BYTES, Level, failed, passed
from remote_payload.contract import ArtifactFile


def sha256(path: Path) -> str:
    """The sha256 of `path` as it lies on the disk."""
    with open(path, "rb") as file:
        platform.drop_cache(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path, files: Iterable[ArtifactFile]) -> Level:
    """L1 for every file of the manifest, one read each."""
    total = 0
    for promised in files:
        found = sha256(local_path(folder, promised.path))
        if found != promised.sha256:
            return failed(BYTES, f"{promised.path}: sha256 on disk is {found}, the manifest says {promised.sha256}")
        total += promised.size
    return passed(BYTES, {"bytes": total})
