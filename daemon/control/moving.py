"""Move everything that lives to another computer: one file, and the old home drives nothing from then on.

The fence comes first: `moved` in the database, without which no daemon starts on it (`refuse_moved`). Only then is the
file written, so there are never two homes that may drive; an export that fails takes the fence away again. What a
finished job left here stays here. A model that is verified and not yet let go is fetched and verified anew over there:
its receipt speaks of this disk.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection

from daemon import platform
from daemon.control.jobfile import canonical_path, data_sets, model_folder
from daemon.control.leadership import hold_lock
from daemon.domain import ids
from daemon.domain.records import Job
from daemon.domain.spec import HUB_ID, from_canonical
from daemon.errors import Refused
from daemon.settings import Paths, Settings
from daemon.store import attention, backups, events, high_water, jobs, leader, migrate
from daemon.store.database import Database
from remote_payload.contract import ContractError, checked_path

SCHEMA = "homeport.export/1"
ABOUT = "export.json"  # the first member
DATABASE = "state/homeport.db"  # the one that no export lacks
_ANOTHER_HOME = "set HOMEPORT_HOME to an empty folder for the imported ones"
FILE = "moved_to"  # likewise, once that export is written: where to
FENCE = "moved"  # in the meta table: the export that took everything away
PART = 1 << 20  # bytes


@dataclass(frozen=True)
class Moved:
    """What travelled: the names of unfinished jobs, and what a person has to see to on the new computer."""

    jobs: tuple[str, ...]
    size: int
    notes: tuple[str, ...] = ()


def refuse_moved(database: Database) -> None:
    """Raises Refused for a home whose jobs live elsewhere now."""
    with database.read() as c:
        fence, file = leader.get_meta(c, FENCE), leader.get_meta(c, FILE)
    if fence:
        told = attention.of_export(file)
        raise Refused(told["text"], hint=told["hint"])


def export_home(settings: Settings, target: Path) -> Moved:
    """Write `target` (mode 0600: it holds our SSH key) and fence this home.

    Exported already, its fence stays whatever happens now, and the jobs of the second file are HELD where it is
    imported: the first one may be in use.

    Raises Refused for a `target` that exists, while a daemon runs and without a database, StoreError, OSError; then
    this home is as before.
    """
    paths = settings.paths
    if target.exists() or target.is_symlink():
        raise Refused(f"{target} is there already, and is not replaced", hint="name a file that does not exist yet")
    if not paths.database.exists():
        raise Refused(f"there is nothing to export: no database at {paths.database}", hint="jobctl doctor")
    with closing(hold_lock(paths.lock)), closing(Database(paths.database)) as database:
        migrate.migrate(database, paths.backups, _now())
        with database.read() as c:
            before = leader.get_meta(c, FENCE)
        export = before or ids.nonce()
        if not before:
            _fence(database, export)
        beside, copy = target.with_name(f"{target.name}.{export}"), paths.state / f".export-{export}.db"
        try:
            backups.write(paths.database, copy)
            with database.read() as c:
                live = jobs.unfinished(c)
            files = {DATABASE: copy, **dict(_files(settings, live))}
            _write(beside, export, bool(before), files)
            beside.replace(target)
        except BaseException:
            if not before:
                _fence(database, "")
            raise
        finally:
            beside.unlink(missing_ok=True)
            copy.unlink(missing_ok=True)
        platform.sync_folder(target.absolute().parent)
        with database.write(fenced=False) as c:  # should it fail, the fence stays: there is a file
            leader.put_meta(c, FILE, str(target.absolute()))
    return Moved(tuple(job.name for job in live), target.stat().st_size)


def import_home(settings: Settings, source: Path) -> Moved:
    """Make this computer the home of what `source` holds. Nothing is here until everything is, checked by its hash.

    On the computer that exported it: takes the jobs back, HELD, since they may have gone on elsewhere.
    Raises Refused for a home with jobs of its own, one that has lost its database, and a file that is not whole,
    StoreError, OSError.
    """
    paths = settings.paths
    with closing(hold_lock(paths.lock)):
        if paths.database.exists():
            return _take_back(paths, source)
        staging = paths.state / ".import"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            about = _unpack(source, staging)
            _rehome(staging / "state" / high_water.NAME, paths.state)
            _refuse_remains(paths, staging / "state")
            machine = f"export-{about['export']}" if about["again"] else platform.machine_id()
            with closing(Database(staging / DATABASE)) as database:
                migrate.migrate(database, staging / "backups", _now())
                with database.write(fenced=False) as c:
                    _open(c)
                    leader.put_meta(c, "machine_id", machine)
                    events.add(c, "daemon.imported", _now())
                    live = jobs.unfinished(c)
            for folder, home in (("models", paths.models), ("state", paths.state)):
                _settle(staging / folder, home)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return Moved(tuple(job.name for job in live), source.stat().st_size, tuple(_notes(live)))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _fence(database: Database, export: str) -> None:
    with database.write(fenced=False) as c:
        leader.put_meta(c, FENCE, export)
        events.add(c, "daemon.exported" if export else "daemon.kept", _now(), export=export)


def _open(c: Connection) -> None:
    """The jobs live here from now on."""
    for key in (FENCE, FILE):
        leader.put_meta(c, key, "")


def _files(settings: Settings, live: list[Job]) -> Iterator[tuple[str, Path]]:
    """What travels beside the database: our key, and of each unfinished job data, log and what came home so far."""
    paths = settings.paths
    for path in (paths.ssh_key, paths.ssh_key.with_suffix(".pub"), paths.database.with_name(high_water.NAME)):
        if path.exists():
            yield f"state/{path.name}", path
    yield from _below(paths.state, paths.state / "base", "state")
    for job in live:
        for data in data_sets(job).values():
            yield f"state/data/{data.sha256}.jsonl", canonical_path(settings, data)
        yield from _below(paths.state, paths.job_folders / job.id, "state")
        for kind in ("incoming", "rescue"):
            yield from _below(paths.models, paths.models / f".{kind}-{job.id}", "models")


def _below(top: Path, folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield f"{name}/{path.relative_to(top).as_posix()}", path


def _write(target: Path, export: str, again: bool, files: dict[str, Path]) -> None:
    told: dict[str, dict[str, Any]] = {
        name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in files.items()
    }
    about = json.dumps({"schema": SCHEMA, "export": export, "again": again, "files": told}).encode()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            _add(archive, ABOUT, io.BytesIO(about), len(about))
            for name, path in files.items():
                with path.open("rb") as content:
                    _add(archive, name, content, told[name]["size"])
        file.flush()
        platform.sync_file(file.fileno())


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    archive.addfile(member, content)


@contextlib.contextmanager
def _archive(source: Path) -> Iterator[tarfile.TarFile]:
    """Raises Refused where what is read in it is no export, or not whole."""
    try:
        with tarfile.open(source, mode="r:") as archive:
            yield archive
    except (tarfile.TarError, ContractError, KeyError, TypeError, FileExistsError) as error:
        raise Refused(f"{source} cannot be read: {error}", hint="copy it again") from error


def _about(archive: tarfile.TarFile, source: Path) -> dict[str, Any]:
    member = archive.next()
    content = archive.extractfile(member) if member is not None and member.name == ABOUT else None
    try:
        about = json.loads(content.read() if content else b"")
        if about["schema"] != SCHEMA or not isinstance(about["files"], dict):
            raise ValueError(f"schema {about['schema']}")
        if lacking := {"export", "again"} - about.keys() | {DATABASE} - about["files"].keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{source} is no export of homeport ({error})", hint="jobctl export FILE   makes one") from error
    return dict(about)


def _unpack(source: Path, staging: Path) -> dict[str, Any]:
    """Every promised file under `staging`, each with the size and hash that it has to have, and no other."""
    with _archive(source) as archive:
        about = _about(archive, source)
        promised = about["files"]
        for member in archive:
            if member.name == ABOUT:
                continue
            path = checked_path(member.name)
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or member.name not in promised or path.parts[0] not in ("state", "models"):
                raise Refused(f"{source} holds {member.name}, which it does not name")
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                shutil.copyfileobj(content, out, PART)
                out.flush()
                platform.sync_file(out.fileno())
        for name, told in promised.items():
            if not (staging / name).is_file() or _sha256(staging / name) != told["sha256"]:
                raise Refused(f"{source} is not whole: {name} is missing or changed", hint="copy it again")
        return about


def _rehome(file: Path, folder: Path) -> None:
    """This move is meant: it raises no doubt by itself."""
    with contextlib.suppress(ValueError):  # what makes no sense stays as it is, and the next daemon doubts it
        if reached := high_water.read(file):
            high_water.write(file, replace(reached, folder=str(folder.resolve())))


def _refuse_remains(paths: Paths, staged: Path) -> None:
    """Raises Refused where only the database of an installation is missing: its key opens machines that may bill.

    What an import that was cut short left is the same as in the file, and no obstacle.
    """
    remains = [
        path
        for path in (paths.ssh_key, paths.database.with_name(high_water.NAME))
        if path.exists() and not ((new := staged / path.name).exists() and filecmp.cmp(path, new, shallow=False))
    ]
    copies = backups.copies(paths.backups)[:1]
    if remains or copies:
        named = ", ".join(str(path) for path in [*remains, *copies])
        hint = "jobctl doctor --fix   puts the newest copy back" if copies else _ANOTHER_HOME
        raise Refused(f"an installation lives here and has lost its database; it left {named}", hint=hint)


def _settle(staged: Path, home: Path) -> None:
    """Into place, the database last: before it is there, the import can be begun again."""
    files = [path for path in staged.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == "homeport.db"):
        target = home / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)
        platform.sync_folder(target.parent)


def _take_back(paths: Paths, source: Path) -> Moved:
    """The fence of this very export goes; another machine may have gone on, so the next daemon is in doubt."""
    with _archive(source) as archive:
        export = _about(archive, source)["export"]
    with closing(Database(paths.database)) as database, database.write(fenced=False) as c:
        if leader.get_meta(c, FENCE) != export:
            raise Refused(f"this computer has jobs of its own in {paths.state}", hint=_ANOTHER_HOME)
        _open(c)
        leader.put_meta(c, "machine_id", f"export-{export}")
        live = jobs.unfinished(c)
    notes = ("these jobs are held: look at jobctl leases, then jobctl resume JOB",)
    return Moved(tuple(job.name for job in live), source.stat().st_size, notes)


def _notes(live: list[Job]) -> Iterator[str]:
    """What did not travel and is needed."""
    for job in live:
        spec = from_canonical(job.spec_json)
        if model_folder(spec, Path(job.spec_dir)) is None and not re.fullmatch(HUB_ID, spec.model):
            yield f"{job.name} needs its base model here: {Path(job.spec_dir) / spec.model}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
