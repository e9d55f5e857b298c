"""The database file: how it is opened, and the two ways to use it.

SQLite in WAL with synchronous=FULL: an INTENT row *is* the money, so a commit must survive a power cut (0.8 ms each).
Every write transaction is BEGIN IMMEDIATE and checks the leader's epoch first: a process that woke up late is fenced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, select
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.pool import QueuePool

from daemon.errors import Fenced
from daemon.store import schema
from daemon.store.sqlite_errors import unusable

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
        url = URL.create("sqlite", database=str(path))  # in text, a ? in the path would end it
        self.engine: Engine = create_engine(url, poolclass=QueuePool, connect_args={"check_same_thread": False})
        event.listen(self.engine, "connect", _pragmas)
        event.listen(self.engine, "begin", _begin_immediate)

    @contextmanager
    def write(self, *, fenced: bool = True) -> Iterator[Connection]:
        """One write transaction. Raises Fenced when a newer leader exists, StoreError when SQLite cannot."""
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

    def _check_epoch(self, connection: Connection) -> None:
        current = connection.execute(_EPOCH).scalar()
        if self.epoch is None or current != self.epoch:
            raise Fenced(f"this process leads epoch {self.epoch}, the database is at {current}", hint="jobctl status")

    def close(self) -> None:
        self.engine.dispose()


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
