"""Copies of the database: whole, in time, and not without end."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import store
import structlog

from daemon import app, settings
from daemon.errors import Damaged, StoreError
from daemon.store import backups
from daemon.store.backups import DAY_MS, EVERY_MS
from daemon.store.database import Database
from daemon.store.readonly import integrity

HOUR = EVERY_MS


def test_a_copy_is_whole_and_private(tmp_path: Path) -> None:
    """Made while a writer has changes that are only in its log."""
    database = store.opened(tmp_path)
    with database.write() as c:
        store.add_job(c)

    made = backups.copy(database.path, tmp_path / "copies", store.NOW)

    database.close()
    assert integrity(made) == "ok"
    with sqlite3.connect(made) as db:
        assert db.execute("SELECT id FROM jobs").fetchall() == [(store.JOB,)]
    db.close()
    assert made.stat().st_mode & 0o077 == 0
    assert list((tmp_path / "copies").iterdir()) == [made]


@pytest.mark.parametrize(("content", "kind"), [(b"no database" * 99, Damaged), (None, StoreError)])
def test_damage_is_not_what_cannot_be_opened(tmp_path: Path, content: bytes | None, kind: type[StoreError]) -> None:
    """A copy may replace the one, and not the other; each says what to type."""
    if content is not None:
        (tmp_path / "homeport.db").write_bytes(content)
    with pytest.raises(StoreError) as raised:
        backups.write(tmp_path / "homeport.db", tmp_path / "copy.db")

    assert type(raised.value) is kind
    assert ("ls -ld" in raised.value.hint) == (content is None)


def test_a_path_is_no_address(tmp_path: Path) -> None:
    """What means something in a URL means nothing in the name of a folder: writer, reader and copies agree."""
    folder = tmp_path / "100%41? #1&mode=memory"
    database = store.opened(folder)
    made = backups.copy(database.path, folder / "copies", store.NOW)
    database.close()

    assert integrity(folder / "homeport.db") == integrity(made) == "ok"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_lost_database_is_not_begun_anew(tmp_path: Path) -> None:
    """While there are copies, the daemon names them and makes nothing; without any it begins."""
    paths = settings.paths({"HOMEPORT_HOME": str(tmp_path)})
    kept = paths.backups / f"homeport-{store.NOW}.db"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(StoreError, match="is gone") as raised:
        app.open_store(paths, store.NOW)
    assert "jobctl doctor --fix" in raised.value.hint and not paths.database.exists()

    kept.unlink()
    app.open_store(paths, store.NOW).close()


def test_which_copies_stay(tmp_path: Path) -> None:
    """Of ten days of hourly copies: the six newest, and the last one of each of the last seven days."""
    every = [Path(f"homeport-{hour * HOUR}.db") for hour in range(240)]
    hours = sorted(int(path.stem.split("-")[1]) // HOUR for path in backups.kept(every[::-1]))
    assert hours == [95, 119, 143, 167, 191, 215, 234, 235, 236, 237, 238, 239]


def test_when_a_copy_is_due(tmp_path: Path) -> None:
    """An hour after the last one if anything changed since; at once when the clock was set back before it.

    A database that was just deleted has not changed.
    """
    database, folder = tmp_path / "homeport.db", tmp_path / "copies"
    database.touch()
    assert backups.is_due(database, folder, store.NOW)
    folder.mkdir()
    (folder / f"homeport-{store.NOW}.db").touch()

    def due(changed_ms: int, now_ms: int) -> bool:
        os.utime(database, (changed_ms / 1000, changed_ms / 1000))
        return backups.is_due(database, folder, now_ms)

    assert not due(store.NOW + 1000, store.NOW + HOUR - 1)
    assert due(store.NOW + 1000, store.NOW + HOUR)
    assert not due(store.NOW - 1000, store.NOW + DAY_MS)
    assert due(store.NOW + 1000, store.NOW - 1)
    database.unlink()
    assert not backups.is_due(database, folder, store.NOW + HOUR)


def test_what_a_person_put_beside_the_copies_stays(tmp_path: Path) -> None:
    """Its name is no time, and it neither ends the copying nor goes away with old copies."""
    database, theirs = store.opened(tmp_path), tmp_path / "copies" / "homeport-before-upgrade.db"
    theirs.parent.mkdir()
    theirs.touch()

    made = backups.copy(database.path, theirs.parent, store.NOW)

    assert theirs.exists() and backups.copies(theirs.parent) == [made]
    database.close()


def test_a_clock_set_back_loses_no_new_copy(tmp_path: Path) -> None:
    """Ten days of copies from the clock's future do not push out the one that is made now."""
    database = store.opened(tmp_path)
    folder = tmp_path / "copies"
    folder.mkdir()
    for hour in range(240):
        (folder / f"homeport-{store.NOW + DAY_MS + hour * HOUR}.db").touch()

    assert backups.is_due(database.path, folder, store.NOW)
    made = backups.copy(database.path, folder, store.NOW)

    assert made.exists()
    assert not backups.is_due(database.path, folder, store.NOW + 1)
    database.close()


def test_the_copy_of_a_clock_that_was_ahead_is_not_the_newest(tmp_path: Path) -> None:
    """Put back, it would forget all that was done since."""
    for hour in (-2, -1, 24 * 365):
        (tmp_path / f"homeport-{store.NOW + hour * HOUR}.db").touch()

    newest = backups.newest_first(tmp_path, store.NOW)

    assert newest[0].stem == f"homeport-{store.NOW - HOUR}" and len(newest) == 3


def test_a_damaged_database_is_not_copied(tmp_path: Path) -> None:
    """A page of rubbish is found, and the folder holds whole copies alone."""
    database = store.opened(tmp_path)
    with database.write() as c:
        for n in range(200):
            store.add_job(c, f"j{n:05}", spec_text="x" * 500)
    database.close()
    content = bytearray(database.path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8192] = b"\xa5" * 8192
    database.path.write_bytes(content)

    with pytest.raises(StoreError):
        backups.copy(database.path, tmp_path / "copies", store.NOW)
    assert list((tmp_path / "copies").iterdir()) == []


def copied(database: Database, folder: Path) -> Any:
    """As much of the world as copying looks at."""
    return SimpleNamespace(
        database=database,
        settings=SimpleNamespace(paths=SimpleNamespace(backups=folder)),
        clock=SimpleNamespace(wall_ms=lambda: store.NOW),
    )


async def test_an_unexpected_error_is_told_and_ends_no_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect in one look: its trace is in the log, and the next look comes all the same."""
    database, looks, again = store.opened(tmp_path), 0, asyncio.Event()

    def due(*given: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ValueError("a defect")
        again.set()
        return False

    monkeypatch.setattr(backups, "is_due", due)
    monkeypatch.setattr(app, "COPY_LOOK_S", 0.01)
    with structlog.testing.capture_logs() as told:
        keeping = asyncio.create_task(app._keep_copies(copied(database, tmp_path / "copies")))
        await asyncio.wait_for(again.wait(), 10)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    database.close()

    [entry] = [entry for entry in told if entry["event"] == "backup.crashed"]
    assert entry["exc_info"]


async def test_a_full_disk_costs_a_copy_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on after an OSError, and copies as soon as it can."""
    database = store.opened(tmp_path)
    folder = tmp_path / "copies"
    folder.write_text("a file where the folder should be")
    monkeypatch.setattr(app, "COPY_LOOK_S", 0.01)

    keeping = asyncio.create_task(app._keep_copies(copied(database, folder)))
    await asyncio.sleep(0.1)
    assert not keeping.done()
    folder.unlink()
    for _ in range(500):
        await asyncio.sleep(0.02)
        if folder.is_dir() and backups.copies(folder):
            break
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    database.close()

    assert [path.name for path in backups.copies(folder)] == [f"homeport-{store.NOW}.db"]
