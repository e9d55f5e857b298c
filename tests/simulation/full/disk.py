"""What a power cut leaves of a folder: what was synced, and of the rest a part that nobody chose.

Content that was written and not synced may be lost or torn. Names (created, renamed, removed) that no sync of their
folders made durable are undone from the newest backwards, to a random depth: file systems keep their order.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from daemon.store.database import Database

_OURS_TO_LEAVE = (".db", ".db-wal", ".db-shm")  # the database is cut by simulation.py, by its own rules
_FULL = 2  # of PRAGMA synchronous


def syncs_each_commit(database: Database) -> bool:
    """Else a power cut takes what was committed since the last checkpoint: all that is in the log."""
    connection = database.engine.raw_connection()
    try:
        return int(connection.cursor().execute("PRAGMA synchronous").fetchone()[0]) >= _FULL
    finally:
        connection.close()


@dataclass
class _Change:
    """One change of names that is not durable yet. `old` is the content that it replaced or removed."""

    what: str
    paths: tuple[Path, ...]
    waits_for: set[Path]
    old: bytes | None = None


@dataclass
class Disk:
    """Follows the file operations below `root`."""

    root: Path
    synced: dict[int, bytes] = field(default_factory=dict)  # by inode
    written: set[int] = field(default_factory=set)
    changes: list[_Change] = field(default_factory=list)

    def follow(self, what: str, paths: tuple[Path, ...]) -> None:
        """Told before the operation happens."""
        path = paths[0]
        if path.suffix in _OURS_TO_LEAVE:
            return
        if what == "homeport.sync":
            if path.exists():
                self.synced[path.stat().st_ino] = path.read_bytes()
        elif what == "homeport.sync_folder":
            for change in self.changes:
                change.waits_for.discard(path)
            self.changes = [change for change in self.changes if change.waits_for]
        elif what == "open":
            if path.exists():
                self.written.add(path.stat().st_ino)
            else:
                self.changes.append(_Change("create", paths, {path.parent}))
        elif what == "os.mkdir" and not path.exists():
            self.changes.append(_Change("mkdir", paths, {path.parent}))
        elif what == "os.remove" and path.exists():  # some tidy up after themselves, whether it is there or not
            self.changes.append(_Change("remove", paths, {path.parent}, path.read_bytes() if path.is_file() else None))
            self._forget(path)
        elif what == "os.rename":
            self._rename(path, paths[1])

    def _rename(self, source: Path, target: Path) -> None:
        if not source.exists():
            return
        self._forget(target)
        if source.name.startswith(".") and source.name.endswith(".tmp"):
            # remote_payload's write_whole syncs file and folder itself, without a word to anybody.
            self.synced[source.stat().st_ino] = source.read_bytes()
            self.changes = [change for change in self.changes if source not in change.paths]
            return
        old = target.read_bytes() if target.is_file() else None
        self.changes.append(_Change("rename", (source, target), {source.parent, target.parent}, old))

    def _forget(self, path: Path) -> None:
        """Its inode may be another file's next."""
        if path.is_file():
            inode = path.stat().st_ino
            self.synced.pop(inode, None)
            self.written.discard(inode)
            self._before.discard(inode)

    def is_durable(self, path: Path) -> bool:
        """Its content is synced, and no change of a name on the way to it waits for a sync."""
        if not path.exists():
            return False
        inode = path.stat().st_ino
        if inode in self.written or inode in self.synced:
            content = path.read_bytes()
            if self.synced.get(inode) != content:
                return False
        return not any(path == each or path.is_relative_to(each) for c in self.changes for each in c.paths[-1:])

    def cut(self, chance: Random) -> list[str]:
        """The power goes; returns what was lost, in words."""
        lost = []
        for change in reversed(self.changes[chance.randint(0, len(self.changes)) :]):
            lost.append(f"undone: {change.what} {change.paths[-1].relative_to(self.root)}")
            self._undo(change)
        for path in sorted(self.root.rglob("*")):
            if path.suffix not in _OURS_TO_LEAVE and path.is_file() and (torn := self._tear(path, chance)):
                lost.append(f"{torn}: {path.name}")
        self.changes.clear()
        self.written.clear()
        self._before |= {path.stat().st_ino for path in self.root.rglob("*") if path.is_file()}  # it is on the platter
        return lost

    def _undo(self, change: _Change) -> None:
        path = change.paths[-1]
        if change.what == "create":
            path.unlink(missing_ok=True)
        elif change.what == "mkdir":
            shutil.rmtree(path, ignore_errors=True)
        elif change.what == "remove" and change.old is not None and path.parent.is_dir():
            self._as_it_was(path, change.old)
        elif change.what == "rename" and path.exists() and change.paths[0].parent.is_dir():
            path.rename(change.paths[0])
            if change.old is not None:
                self._as_it_was(path, change.old)

    def _as_it_was(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.synced[path.stat().st_ino] = content

    def _tear(self, path: Path, chance: Random) -> str:
        status = path.stat()
        known = self.synced.get(status.st_ino)
        if known is None and status.st_ino not in self.written:
            known = path.read_bytes() if self._is_old(path) else b""
        content = path.read_bytes()
        if content == known:
            return ""
        durable = known or b""
        kept = chance.choice((content, durable, content[: chance.randint(0, len(content))]))
        if kept == content:
            return ""
        path.chmod(0o600)
        path.write_bytes(kept)
        return "torn" if kept != durable else "rolled back"

    def _is_old(self, path: Path) -> bool:
        """Written before this disk was followed."""
        return path.stat().st_ino in self._before

    def __post_init__(self) -> None:
        self._before = {path.stat().st_ino for path in self.root.rglob("*") if path.is_file()}
