"""The database file: how it is opened, and the two ways to use it.

SQLite in WAL with synchronous=FULL: an INTENT row *is* the money, so a commit must survive a power cut (0.8 ms each).
Every write transaction is BEGIN IMMEDIATE and checks the leader's epoch first: a process that woke up late is fenced.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import structlog
from sqlalchemy import URL, Connection, Engine, create_engine, event, select
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.pool import QueuePool

from daemon import platform
from daemon.errors import Fenced, StoreError
from daemon.store import backups, schema
from daemon.store.sqlite_errors import unusable

log = structlog.get_logger()
BUSY_TIMEOUT_MS = 30_000
_EPOCH = select(schema.leader.c.epoch)


class Database:
    """One SQLite file. `epoch` is set once this process leads (store/leader.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch: int | None = None
        fresh = not path.exists()
        if fresh:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        # Quoted, a ? in the path does not end it; mode=rw: SQLite makes no second file where ours was deleted.
        url = URL.create("sqlite", database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"})
        self.engine: Engine = create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False})
        event.listen(self.engine, "connect", _pragmas)
        event.listen(self.engine, "begin", _begin_immediate)
        self._file = _identity(path)

    @contextmanager
    def write(self, *, fenced: bool = True) -> Iterator[Connection]:
        """One write transaction. Raises Fenced when a newer leader exists, StoreError when SQLite cannot."""
        if fenced:
            self.stay_in_place()
        try:
            with self.engine.begin() as connection:
                if fenced:
                    self._check_epoch(connection)
                yield connection
        except IntegrityError:
            raise
        except DatabaseError as error:
            raise unusable(self.path, error.orig) from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view; nothing may be written in it. Raises StoreError when SQLite cannot."""
        try:
            with self.engine.connect().execution_options(read_only=True) as connection:
                yield connection
        except DatabaseError as error:
            raise unusable(self.path, error.orig) from error

    def refuse_overtaken(self) -> None:
        """Before the world is asked for something that leaves no row. Raises Fenced when a newer leader exists."""
        with self.read() as connection:
            self._check_epoch(connection)

    def stay_in_place(self) -> None:
        """Where somebody deleted the file, put it back: what is written to an unlinked one ends with this process.

        Raises Fenced where another file has its name, and keeps ours beside it; StoreError when SQLite cannot.
        """
        found = _identity(self.path)
        if found == self._file:
            return
        if cast(QueuePool, self.engine.pool).checkedout():  # a connection is in use: the next write sees to it
            return
        kept = self.path.with_name(f"{self.path.name}.kept-{time.time_ns() // 1_000_000}")
        try:
            with closing(self.engine.raw_connection()) as raw:
                backups.dump(cast(sqlite3.Connection, raw.driver_connection), kept)
            self.close()
            if found is not None:
                raise Fenced(
                    f"{self.path} was replaced while this daemon used it; ours is {kept}", hint="jobctl status"
                )
            for end in ("-wal", "-shm"):  # of the deleted one: they would be applied to this one
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            kept.replace(self.path)
            platform.sync_folder(self.path.parent)
        except (DatabaseError, sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path} is gone and cannot be put back: {error}", hint="jobctl doctor") from error
        self._file = _identity(self.path)
        log.warning("database.put_back", file=str(self.path))

    def _check_epoch(self, connection: Connection) -> None:
        current = connection.execute(_EPOCH).scalar()
        if self.epoch is None or current != self.epoch:
            raise Fenced(f"this process leads epoch {self.epoch}, the database is at {current}", hint="jobctl status")

    def close(self) -> None:
        self.engine.dispose()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:  # deleted
        return None
    return found.st_dev, found.st_ino


def _pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_immediate alone
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "fullfsync=ON",  # macOS: plain fsync stops at the drive's cache
        "checkpoint_fullfsync=ON",
        "recursive_triggers=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
