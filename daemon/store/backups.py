"""Copies of the database: before each change of the schema, and hourly while the daemon runs.

A restored copy is known for what it is by the high-water file (leader.py): every unfinished job is then HELD.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from daemon import platform
from daemon.errors import StoreError
from daemon.store.sqlite_errors import unusable

EVERY_MS = 3_600_000
DAY_MS = 86_400_000
NEWEST = 6  # kept whatever their age
DAYS = 7  # of each of so many days with copies, the last one


def copy(database: Path, folder: Path, now_ms: int) -> Path:
    """A whole copy in one file, by SQLite itself, while others write. Raises StoreError and OSError."""
    target = write(database, folder / f"homeport-{now_ms}.db")
    for old in set(copies(folder)) - kept(newest_first(folder, now_ms)):
        old.unlink()
    return target


def write(database: Path, target: Path) -> Path:
    """`database` as one file. Raises StoreError and OSError."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as source:
            return dump(source, target)
    except sqlite3.Error as error:
        raise unusable(database, error) from error


def dump(source: sqlite3.Connection, target: Path) -> Path:
    """What `source` reads as one file for this user alone; it has its name once it is whole and on the platter.

    Raises sqlite3.Error, StoreError and OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = target.with_suffix(".new")
    beside.unlink(missing_ok=True)
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        source.execute("VACUUM INTO ?", (str(beside),))
        with contextlib.closing(sqlite3.connect(beside)) as made:
            found = made.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{target}: {found}", hint="jobctl doctor")
        with open(beside, "rb+") as file:
            platform.sync_file(file.fileno())
        beside.replace(target)
        platform.sync_folder(target.parent)
    finally:
        beside.unlink(missing_ok=True)
    return target


def copies(folder: Path) -> list[Path]:
    """Those that we made; what a person put beside them is theirs."""
    return [each for each in folder.glob("homeport-*.db") if each.stem.removeprefix("homeport-").isdecimal()]


def newest_first(folder: Path, now_ms: int) -> list[Path]:
    """Every copy in the folder, by the time in its name; those from the future of a clock that was set back are old."""
    return sorted(copies(folder), key=lambda each: (_at(each) <= now_ms, _at(each)), reverse=True)


def refuse_lost(database: Path, folder: Path) -> None:
    """Raises StoreError where there are copies and no database: to begin anew would forget what is rented."""
    if copies(folder) and not database.exists():
        raise StoreError(
            f"{database} is gone, and what it knew is in the copies in {folder}",
            hint=f"jobctl doctor --fix   puts the newest copy back; to begin anew instead, move {folder} away",
        )


def is_due(database: Path, folder: Path, now_ms: int) -> bool:
    """An hour has passed since the newest copy, or the clock was set back, and the database changed since."""
    made = [_at(each) for each in copies(folder)]
    if not made:
        return True
    last = max(made)
    files = (database, database.with_name(database.name + "-wal"))
    changed = max((f.stat().st_mtime for f in files if f.exists()), default=0.0)
    return not any(at <= now_ms < at + EVERY_MS for at in made) and (changed * 1000 > last or last > now_ms)


def kept(newest_first: Sequence[Path]) -> set[Path]:
    """Those that stay: the newest ones, and the last one of each of the last days."""
    by_day: dict[int, Path] = {}
    for each in newest_first:
        by_day.setdefault(_at(each) // DAY_MS, each)
    return {*newest_first[:NEWEST], *list(by_day.values())[:DAYS]}


def _at(copied: Path) -> int:
    return int(copied.stem.removeprefix("homeport-"))
