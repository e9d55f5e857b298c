"""What SQLite's errors mean: damage, which a copy replaces, or a file that is only not to be had just now."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from daemon.errors import NO_ROOM, NOT_OURS, Damaged, StoreError

DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_OTHERS_LOCK = "fuser -v {file}   names the program that holds it: end that one"

# Primary result code -> what the person types.
WAYS_OUT = {
    sqlite3.SQLITE_BUSY: _OTHERS_LOCK,
    sqlite3.SQLITE_LOCKED: _OTHERS_LOCK,
    sqlite3.SQLITE_PROTOCOL: _OTHERS_LOCK,
    sqlite3.SQLITE_CANTOPEN: NOT_OURS,
    sqlite3.SQLITE_PERM: NOT_OURS,
    sqlite3.SQLITE_READONLY: NOT_OURS,
    sqlite3.SQLITE_FULL: NO_ROOM,
    sqlite3.SQLITE_IOERR: "df -h {folder}   the disk under it fails or is full",
}


def unusable(path: Path, error: BaseException | None) -> StoreError:
    """`error`, as SQLite raised it on the database `path`, for a person."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest of it says where in SQLite
    if code in DAMAGE:
        return Damaged(f"{path}: {error}", hint="jobctl doctor")
    hint = WAYS_OUT.get(code, "jobctl doctor").format(folder=path.parent, file=path)
    return StoreError(f"{path}: {error}", hint=hint)
