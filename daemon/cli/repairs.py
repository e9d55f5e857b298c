"""What `jobctl doctor --fix` mends by itself: only what loses nothing, rents nothing and returns nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import click

from daemon import platform, settings
from daemon.api.messages import Check
from daemon.control.leadership import hold_lock
from daemon.errors import HomeportError, Refused, from_system
from daemon.service.holder import refuse_running
from daemon.settings import Settings
from daemon.store import backups, readonly


def mend(found: Sequence[Check]) -> list[str]:
    """Mend each fault that has a repair; returns what was done. What cannot be mended is said, and left as it is."""
    done: list[str] = []
    for check in found:
        if check["status"] != "FAIL" or check["name"] not in REPAIRS:
            continue
        try:
            done += REPAIRS[check["name"]](settings.load())
        except (HomeportError, OSError) as error:
            told = error if isinstance(error, HomeportError) else from_system(error)
            click.echo(f"not mended: {check['name']}: {told.message}", err=True)
            click.echo(f"Try:   {told.hint}", err=True)
    return done


def _close_files(loaded: Settings) -> Iterator[str]:
    """Keys, database and state folder for this user alone."""
    for path in loaded.paths.private:
        if path.exists() and platform.open_to_others(path):
            path.chmod(path.stat().st_mode & 0o700)
            yield f"{path} is readable by you alone"


def _put_copy_back(loaded: Settings) -> Iterator[str]:
    """The newest whole copy in place of a database that is gone or damaged, which is kept aside.

    Raises Refused while a daemon runs, or without a copy, StoreError where it is only locked or not ours to read.
    The next daemon sees what was done, and holds every job.
    """
    database = loaded.paths.database
    refuse_running(loaded.paths, "jobctl doctor --fix")
    with closing(hold_lock(loaded.paths.lock)):
        if database.exists() and readonly.integrity(database) == "ok":
            return
        now = time.time_ns() // 1_000_000
        copy = next((path for path in backups.newest_first(loaded.paths.backups, now) if _is_whole(path)), None)
        if copy is None:
            raise Refused(
                f"there is no whole copy in {loaded.paths.backups}", hint="jobctl leases   shows what is rented"
            )
        beside = database.with_suffix(".restored")  # whole and on the platter before anything is moved
        shutil.copy(copy, beside)
        beside.chmod(0o600)
        with open(beside, "rb+") as file:
            platform.sync_file(file.fileno())
        aside = f".damaged-{now}"
        for end in ("", "-wal", "-shm"):  # together under one name, SQLite still finds them
            if (path := database.with_name(database.name + end)).exists():
                path.rename(database.with_name(database.name + aside + end))
        beside.replace(database)
        platform.sync_folder(database.parent)
        yield f"{database} is {copy.name} again; the next daemon holds every unfinished job: jobctl up, jobctl leases"


def _is_whole(path: Path) -> bool:
    try:
        return readonly.integrity(path) == "ok"
    except HomeportError:  # the next older one may be whole
        return False


REPAIRS: dict[str, Callable[[Settings], Iterator[str]]] = {
    "market key": _close_files,
    "private files": _close_files,
    "database": _put_copy_back,
}
