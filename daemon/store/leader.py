"""Who may write: the leader row, its epoch, and the high-water file that outlives a restored backup.

The OS lock keeps a second process out while the first lives (control/leadership.py). The epoch fences one that was
stopped, overtaken and wakes late. The high-water file lies beside the database and in no backup: a database whose epoch
or event log is behind it, or that was last led by another machine, was restored or copied.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, update

from daemon import platform
from daemon.store import schema
from daemon.store.database import Database

HIGH_WATER = "high-water"  # beside the database


def take(database: Database, machine: str, now_ms: int, doubtful: Callable[[Connection, int, str], None]) -> None:
    """Lead with a higher epoch than anybody before.

    Where the database looks restored or copied, `doubtful(c, epoch, why)` does what doubt demands, in the same
    transaction: our new epoch wipes out what the doubt rests on, so a crash must leave both or neither.
    """
    high_water = database.path.with_name(HIGH_WATER)
    known = _read_high_water(high_water)
    with database.write(fenced=False) as c:
        row = c.execute(select(schema.leader)).one_or_none()
        stored = row.epoch if row else 0
        last_machine = c.execute(select(schema.meta.c.value).where(schema.meta.c.key == "machine_id")).scalar()
        doubt = None
        if last_machine and last_machine != machine:
            doubt = "this database was last used on another machine"
        elif known and (known["epoch"], known["event"]) > (stored, _last_event(c)):
            doubt = "a backup was restored: this database has forgotten what it knew before"
        epoch = max(stored, known["epoch"] if known else 0) + 1
        values = {"epoch": epoch, "pid": os.getpid(), "host": socket.gethostname(), "since": now_ms, "renewed": now_ms}
        if row:
            c.execute(update(schema.leader).values(**values))
        else:
            c.execute(insert(schema.leader).values(id=1, **values))
        put_meta(c, "machine_id", machine)
        if doubt is not None:
            doubtful(c, epoch, doubt)
        last = _last_event(c)
    _write_high_water(high_water, {"epoch": epoch, "event": last, "machine_id": machine})
    database.epoch = epoch


def note(database: Database) -> None:
    """Remember outside the database how far it had come: a backup taken in this very epoch is then recognised too."""
    with database.read() as c:
        last, machine = _last_event(c), get_meta(c, "machine_id") or ""
    file = database.path.with_name(HIGH_WATER)
    _write_high_water(file, {"epoch": database.epoch or 0, "event": last, "machine_id": machine})


def renew(c: Connection, now_ms: int) -> None:
    c.execute(update(schema.leader).values(renewed=now_ms))


def get_meta(c: Connection, key: str) -> str | None:
    return c.execute(select(schema.meta.c.value).where(schema.meta.c.key == key)).scalar()


def put_meta(c: Connection, key: str, value: str) -> None:
    if c.execute(update(schema.meta).where(schema.meta.c.key == key).values(value=value)).rowcount == 0:
        c.execute(insert(schema.meta).values(key=key, value=value))


def _read_high_water(path: Path) -> dict[str, int] | None:
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    return {"epoch": int(raw["epoch"]), "event": int(raw["event"])}


def _last_event(c: Connection) -> int:
    return c.execute(select(func.max(schema.events.c.id))).scalar() or 0


def _write_high_water(path: Path, content: dict[str, int | str]) -> None:
    beside = path.with_suffix(".tmp")
    with open(beside, "w", encoding="utf-8") as f:
        json.dump(content, f)
        f.flush()
        platform.sync_file(f.fileno())
    beside.replace(path)
    platform.sync_folder(path.parent)
