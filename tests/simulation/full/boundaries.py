"""Every place where a life of the daemon meets something that lasts: commit, market call, box call, file operation.

Each is counted; at each the life can end, or be told of an error, before or after the effect. SQLAlchemy's own events
show commits; audit events (PEP 578), which may raise, show file operations. Nothing of the daemon is changed for it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from pathlib import Path
from random import Random
from typing import Any, Protocol

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from .loop import LIFE, Life

ENDINGS = ("crash before", "crash after", "error before", "effect, then error")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.truncate": 1, "os.link": 2, "os.rmdir": 1}


class Ground(Protocol):
    """The simulation, as the hooks see it."""

    root: Path

    def ending(self, kind: str, what: str) -> str | None: ...
    def after(self, ending: str | None) -> None: ...
    def committed(self, what: str) -> None: ...
    def scrub(self, text: str) -> str: ...
    def file_operation(self, what: str, paths: tuple[Path, ...]) -> None: ...


_ground: Ground | None = None
_installed = False
_said: list[str] = []  # kinds of the events that the open transaction writes


def enter(ground: Ground | None) -> None:
    """From now on the hooks tell `ground`; None: nobody."""
    global _ground, _installed
    _ground = ground
    if not _installed:
        _installed = True
        event.listen(Engine, "before_cursor_execute", _watch)
        event.listen(Engine, "begin", lambda _: _said.clear())
        event.listen(Engine, "commit", _commit)
        sys.addaudithook(_audit)


def _watch(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
    if statement.startswith("INSERT INTO events"):
        _said.append(str(parameters[3]))


def _commit(connection: Any) -> None:
    if _ground is None or LIFE.get() is None:
        return
    what = "+".join(_said) or "row"
    ending = _ground.ending("commit", what)
    if ending == "error before":
        raise _failure("disk I/O error")
    if ending is not None:
        connection.connection.dbapi_connection.commit()
        _ground.committed(what)
        _ground.after(ending)
        raise _failure("database or disk is full")
    connection.connection.dbapi_connection.commit()
    _ground.committed(what)


def _failure(why: str) -> OperationalError:
    return OperationalError("COMMIT", {}, sqlite3.OperationalError(why))


def _audit(name: str, args: tuple[Any, ...]) -> None:
    if _ground is None or not (name == "open" or name.startswith("os.") or name.startswith("homeport.")):
        return
    life: Life | None = LIFE.get()
    if life is None:
        return
    paths: tuple[Path, ...]
    if name == "open":
        path, mode, flags = args
        writes = any(c in "wax+" for c in mode) if isinstance(mode, str) else flags & _WRITING
        if not writes or not isinstance(path, str | os.PathLike):
            return
        paths = (Path(path),)
    elif name in _PATHS:
        if not all(isinstance(arg, str | os.PathLike) for arg in args[: _PATHS[name]]):
            return  # an open file: the sync that follows tells
        paths = tuple(Path(arg) for arg in args[: _PATHS[name]])
    elif name == "homeport.sync":
        paths = (Path(f"/proc/self/fd/{args[0]}").readlink(),)
    elif name == "homeport.sync_folder":
        paths = (Path(args[0]),)
    else:
        return
    if not paths[0].is_relative_to(_ground.root):
        return
    shown = " ".join(str(path.relative_to(_ground.root)) for path in paths if path.is_relative_to(_ground.root))
    ending = _ground.ending("file", _ground.scrub(f"{name} {shown}"))
    if ending in ("error before", "effect, then error"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(paths[0]))
    _ground.file_operation(name, paths)


def pick(chance: Random) -> str:
    return chance.choice(ENDINGS)
