"""Who may write: the leader row, its epoch, and the high-water file that outlives a restored backup.

The OS lock keeps a second process out while the first lives (control/leadership.py). The epoch fences one that was
stopped, overtaken and wakes late. The high-water file lies beside the database and in no backup: a database whose epoch
or event log is behind it, or that was last led by another machine or in another folder, was restored or copied. One
that is made anew beside it keeps the install id, so that machines of the lost one are recognised by their labels.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from sqlalchemy import Connection, bindparam, func, insert, select, update

from daemon.domain import ids
from daemon.store import clock_step, high_water, schema
from daemon.store.database import Database
from daemon.store.high_water import HighWater

_META = select(schema.meta.c.value).where(schema.meta.c.key == bindparam("key"))


def take(database: Database, machine: str, now_ms: int, doubtful: Callable[[Connection, int, str], None]) -> None:
    """Lead with a higher epoch than anybody before.

    Where the database looks restored or copied, `doubtful(c, epoch, why)` does what doubt demands, in the same
    transaction: our new epoch wipes out what the doubt rests on, so a crash must leave both or neither.
    """
    known, doubt = _known(database)
    with database.write(fenced=False) as c:
        row = c.execute(select(schema.leader)).one_or_none()
        stored = row.epoch if row else 0
        last_machine = c.execute(select(schema.meta.c.value).where(schema.meta.c.key == "machine_id")).scalar()
        if last_machine and last_machine != machine:
            doubt = "this database was last used on another machine"
        elif known and known.folder not in ("", _folder(database)):
            doubt = f"this home was copied or moved: it was last used in {known.folder}"
        elif known is None and row is not None and doubt is None:
            doubt = f"nobody knows whether this database is the newest: {high_water.NAME} is gone from beside it"
        elif known and (known.epoch, known.event) > (stored, _last_event(c)):
            doubt = "a backup was restored: this database has forgotten what it knew before"
        epoch = max(stored, known.epoch if known else 0) + 1
        values = {"epoch": epoch, "pid": os.getpid(), "host": socket.gethostname(), "since": now_ms, "renewed": now_ms}
        if row:
            c.execute(update(schema.leader).values(**values))
        else:
            c.execute(insert(schema.leader).values(id=1, **values))
        put_meta(c, "machine_id", machine)
        if get_meta(c, "install_id") is None:
            put_meta(c, "install_id", (known.install if known else "") or ids.job_id())
        if doubt is not None:
            doubtful(c, epoch, doubt)
    database.epoch = epoch
    note(database)


def note(database: Database) -> None:
    """Remember outside the database how far it had come: a backup taken in this very epoch is then recognised too."""
    with database.read() as c:
        machine, install = get_meta(c, "machine_id") or "", get_meta(c, "install_id") or ""
        reached = HighWater(database.epoch or 0, _last_event(c), machine, install, _folder(database))
    high_water.write(database.path.with_name(high_water.NAME), reached)


def renew(c: Connection, now_ms: int) -> None:
    """In every pass: we are here. Where the clock was set back since the last one, so is what is reckoned by it."""
    clock_step.undo(c, now_ms)
    c.execute(update(schema.leader).values(renewed=now_ms))


def get_meta(c: Connection, key: str) -> str | None:
    return c.execute(_META, {"key": key}).scalar()


def put_meta(c: Connection, key: str, value: str) -> None:
    if c.execute(update(schema.meta).where(schema.meta.c.key == key).values(value=value)).rowcount == 0:
        c.execute(insert(schema.meta).values(key=key, value=value))


def _known(database: Database) -> tuple[HighWater | None, str | None]:
    """What the file says, or the doubt that it leaves when it cannot be read."""
    try:
        return high_water.read(database.path.with_name(high_water.NAME)), None
    except ValueError as error:
        return None, f"nobody knows whether this database is the newest: {error}"


def _folder(database: Database) -> str:
    return str(database.path.parent.resolve())


def _last_event(c: Connection) -> int:
    return c.execute(select(func.max(schema.events.c.id))).scalar() or 0
