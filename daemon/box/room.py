"""Disk space taken before a transfer, so that a full disk is found at its start and never made by it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from daemon import platform

# What no transfer takes, of a small disk less: where the database cannot be written, no limit of money holds.
SPARE_BYTES, SPARE_SHARE = 64 << 20, 20


def reserve(fd: int, path: Path, size: int) -> None:
    """Make the open file `path` take `size` bytes on disk, or raise OSError and leave the disk as it was.

    Sizes come from the box: they are compared with what is free, but for what is spared, before anything is taken.
    """
    kept = os.fstat(fd).st_size
    if size <= kept:
        return
    disk = shutil.disk_usage(path.parent)
    free = max(0, disk.free - min(SPARE_BYTES, disk.total // SPARE_SHARE))
    if size - kept > free:
        raise _no_room(errno.ENOSPC, path, size, free)
    try:
        platform.preallocate(fd, size)
    except OSError as error:
        # A reservation that fails half-way keeps what it got, and a full disk would stop the database too.
        os.ftruncate(fd, kept)
        raise _no_room(error.errno or errno.ENOSPC, path, size, free) from error


def _no_room(code: int, path: Path, size: int, free: int) -> OSError:
    return OSError(code, f"{os.strerror(code)}: {size} bytes needed, {free} free to be taken", str(path))
