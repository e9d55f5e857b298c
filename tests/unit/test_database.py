"""What a connection to the database really has: what a power cut leaves, and which triggers and keys hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.store.database import BUSY_TIMEOUT_MS, Database

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,  # FULL: an INTENT that was committed outlasts a power cut
    "foreign_keys": 1,
    "recursive_triggers": 1,
    "fullfsync": 1,
    "checkpoint_fullfsync": 1,
    "busy_timeout": BUSY_TIMEOUT_MS,
}


@pytest.mark.parametrize(("name", "value"), PRAGMAS.items())
def test_every_connection_is_opened_so(tmp_path: Path, name: str, value: object) -> None:
    """The first connection of the pool and one beside it, for reading and for writing."""
    database = Database(tmp_path / "homeport.db")
    with database.write(fenced=False) as first, database.read() as second:
        found = [c.exec_driver_sql(f"PRAGMA {name}").scalar() for c in (first, second)]
    database.close()

    assert found == [value, value]
