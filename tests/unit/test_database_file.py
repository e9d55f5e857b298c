"""The database file under a daemon that runs: what somebody does to it costs no row."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from store import add_job, opened

from daemon.errors import Fenced
from daemon.store import backups, readonly
from daemon.store.database import Database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """With a first job, which is only in its log."""
    made = opened(tmp_path)
    with made.write() as c:
        add_job(c, "first1")
    yield made
    made.close()


def jobs_in(path: Path) -> list[str]:
    with readonly.connection(path) as db:
        return [row["id"] for row in db.execute("SELECT id FROM jobs ORDER BY id")]


def only_itself(database: Database) -> None:
    database.path.unlink()


def with_its_log(database: Database) -> None:
    for path in database.path.parent.glob("homeport.db*"):
        path.unlink()


@pytest.mark.parametrize("delete", [only_itself, with_its_log])
def test_a_file_that_is_deleted_comes_back(database: Database, delete: Callable[[Database], None]) -> None:
    """With the next write, whole, private, and it is what is written from then on, whoever still reads the old one.

    The old one's log is not read into it.
    """
    its_log = database.path.with_name("homeport.db-wal")
    before = its_log.stat().st_ino
    with closing(sqlite3.connect(database.path)) as reader:
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        delete(database)
        for job in ("second", "third1"):
            with database.write() as c:
                add_job(c, job)
        assert its_log.stat().st_ino != before

    assert jobs_in(database.path) == ["first1", "second", "third1"]
    assert readonly.integrity(database.path) == "ok" and database.path.stat().st_mode & 0o077 == 0
    assert not list(database.path.parent.glob("*.kept-*"))


def test_a_file_that_is_replaced_is_left_alone(database: Database) -> None:
    """Somebody put a copy back: this daemon stops, and what it knew lies beside."""
    copy = backups.write(database.path, database.path.with_name("copy.db"))
    with database.write() as c:
        add_job(c, "second")
    copy.replace(database.path)
    before = database.path.read_bytes()

    with pytest.raises(Fenced, match="was replaced"), database.write() as c:
        add_job(c, "third1")

    (kept,) = database.path.parent.glob("*.kept-*")
    assert jobs_in(kept) == ["first1", "second"]
    assert database.path.read_bytes() == before


def test_no_file_is_made_in_the_place_of_a_deleted_one(database: Database) -> None:
    """A read that needs a new connection would else leave an empty database behind, which looks like a replacement."""
    with database.read():
        with_its_log(database)
        with pytest.raises(sqlite3.OperationalError), closing(database.engine.raw_connection()):
            pass
    assert not database.path.exists()

    with database.write() as c:
        add_job(c, "second")
    assert jobs_in(database.path) == ["first1", "second"]
