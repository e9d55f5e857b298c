"""`report`: everything about one job that helps somebody else to understand it, and nothing that is private."""

from __future__ import annotations

import json
import os
import platform as system
import sqlite3
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from daemon import settings
from daemon.cli.path import writing
from daemon.cli.redact import BLOCK, SHORTEST, Redactor, known_secrets
from daemon.cli.terminal import examples, size
from daemon.errors import DaemonUnreachable, Refused
from daemon.settings import Settings
from daemon.store import recorder
from daemon.store.readonly import LOG_NAME, ReadModel

TAIL = 256 << 10  # bytes of each log


@click.command(epilog=examples("jobctl report k7f", "jobctl report @last --to trouble.zip"))
@click.argument("job")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Default: here, by its id.")
def report(job: str, to: Path | None) -> None:
    """Write JOB's flight record into a zip file for somebody who helps. Needs no daemon.

    Events, operations, leases and the ends of the logs; without keys, tokens, secrets of machines and training rows,
    as far as these are longer than a few words.
    """
    if to is not None and (to.exists() or to.is_symlink()):
        raise Refused(f"{to} is there already, and is not replaced", hint="name a file that does not exist yet")
    loaded = settings.load()
    if not loaded.paths.database.exists():
        raise DaemonUnreachable(f"there is no database at {loaded.paths.database}", hint="jobctl doctor")
    found = ReadModel(loaded.paths.database, loaded.paths.job_folders).resolve(job)
    texts = Redactor(
        known_secrets(loaded) | recorder.secrets(loaded.paths.database), _row_files(loaded, found)
    ).texts(_texts(loaded, found))  # fmt: skip
    target = to or Path(f"homeport-report-{found}.zip")
    with writing(target):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name, text in texts.items():
                bundle.writestr(name, text)
    click.echo(f"{target}  {size(target.stat().st_size)}: {', '.join(texts)}")
    click.echo(
        f"Keys, secrets and training rows were taken out. What is shorter may be left, a secret under {SHORTEST} "
        f"characters, a piece of a row under {2 * BLOCK}: look through it before you send it.",
        err=True,
    )


def _texts(loaded: Settings, job: str) -> dict[str, str]:
    rows = recorder.tables(loaded.paths.database, job)
    spec = rows["jobs"][0].pop("spec_text")
    about = {
        "homeport": version("homeport"),
        "python": system.python_version(),
        "system": system.platform(),
        "sqlite": sqlite3.sqlite_version,
        "market": loaded.market_url,
    }
    return {
        "about.json": json.dumps(about, indent=2),
        "job.yaml": str(spec),
        **{f"{table}.jsonl": "\n".join(map(_line, found)) for table, found in rows.items()},
        "machine.log": _tail(loaded.paths.job_folders / job / LOG_NAME),
        "daemon.log": _tail(loaded.paths.log),
    }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _row_files(loaded: Settings, job: str) -> list[Path]:
    stored = recorder.tables(loaded.paths.database, job)["jobs"][0]["data_json"] or {}
    sets = (stored[kind] for kind in ("sft", "dpo", "eval") if kind in stored)
    return [loaded.paths.data / f"{data['sha256']}.jsonl" for data in sets]


def _tail(file: Path) -> str:
    if not file.exists():
        return ""
    with file.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - TAIL))
        return stream.read().decode("utf-8", "replace")
