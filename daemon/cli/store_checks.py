"""The lines of `jobctl doctor` about the database: that it is there, whole, copied, and on a disk that can carry it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon import platform
from daemon.api.messages import Check
from daemon.cli.terminal import duration
from daemon.cli.verdicts import failed, passed, skipped, warned
from daemon.errors import HomeportError
from daemon.service.holder import holder
from daemon.settings import Settings
from daemon.store import backups, high_water, readonly

# SQLite's WAL needs memory that all its users share, which a file system over a network does not give.
NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "fuse.sshfs", "fuse.rclone", "webdav", "davfs")
# Programs that copy the parts of a database at different moments, by how their folders are called.
SYNCED = ("Dropbox", "OneDrive", "Google Drive", "GoogleDrive", "iCloud Drive", "Mobile Documents", "Nextcloud")
STALE_COPY_S = 7_200.0  # twice the time in which one is due

PUT_BACK = "jobctl doctor --fix   puts the newest copy back; unfinished jobs are then held for your resume"


def database(loaded: Settings) -> Sequence[Check]:
    path = loaded.paths.database
    if not path.exists() and path.with_name(high_water.NAME).exists():
        return [failed("database", f"{path} is gone; {_machines_go_on}", PUT_BACK)]
    if not path.exists():
        return [skipped("database", f"{path} is made at the first start of the daemon")]
    try:
        found = readonly.integrity(path)
    except HomeportError as error:
        return [failed("database", f"{error.message}; {_machines_go_on}", error.hint)]
    if found != "ok":
        return [failed("database", f"{path}: {found}; {_machines_go_on}", PUT_BACK)]
    return [passed("database", f"{path} is whole"), *_exported(loaded)]


def _exported(loaded: Settings) -> Iterator[Check]:
    """Only where no daemon may start."""
    for item in readonly.ReadModel(loaded.paths.database, loaded.paths.job_folders).jobs()["attention"]:
        if item["kind"] == "EXPORTED":
            yield failed("home", item["text"], item["hint"])


_machines_go_on = "what is rented goes on billing: jobctl leases"


def copied(loaded: Settings) -> Sequence[Check]:
    """Only a daemon that runs makes copies, so only then is an old one a fault."""
    folder = loaded.paths.backups
    made = backups.newest_first(folder, time.time_ns() // 1_000_000)
    if not made:
        return [skipped("copies", f"none yet in {folder}")]
    newest = made[0]
    age = time.time() - newest.stat().st_mtime
    detail = f"the newest copy of the database is {duration(age)} old: {newest}"
    if age > STALE_COPY_S and holder(loaded.paths) is not None:
        return [warned("copies", detail, "jobctl logs --daemon   says why (backup.failed)")]
    return [passed("copies", detail)]


def folder(loaded: Settings) -> Sequence[Check]:
    """A database on a network or in a synchronised folder is lost sooner or later."""
    state = loaded.paths.state
    kind = platform.filesystem(_existing(state))
    if kind.lower().startswith(NETWORK):
        return [failed("state folder", f"{state} lies on {kind}, which SQLite cannot lock", _ELSEWHERE)]
    if synced := next((part for part in state.parts if part.startswith(SYNCED)), None):
        return [failed("state folder", f"{state} lies in {synced}, which copies half a database", _ELSEWHERE)]
    return [passed("state folder", f"{state} is on a local disk")]


_ELSEWHERE = "stop the daemon, move the folder to a local disk, set HOMEPORT_HOME, and resume what is then held"


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
