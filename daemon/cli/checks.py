"""The checks of `jobctl doctor`: each a function of the settings, all run at once, none longer than a few seconds."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from daemon import platform, settings
from daemon.api.client import Client
from daemon.api.messages import Check
from daemon.artifacts import rebuild
from daemon.cli import market_checks, message_checks, store_checks
from daemon.cli.service_checks import service
from daemon.cli.terminal import cleaned, size
from daemon.cli.verdicts import failed, passed, skipped, warned
from daemon.errors import CredentialsRefused, DaemonUnreachable, HomeportError, from_system
from daemon.service.holder import holder, unread
from daemon.settings import Settings

PYTHON = (3, 11)
SQLITE = (3, 37, 0)  # STRICT tables
FREE_BYTES = 20_000_000_000  # a 7B model in two quantisations, its adapter, and room to verify
VERIFIER_S = 60.0


def run() -> list[Check]:
    """Every check, in a fixed order; those of the daemon last."""
    try:
        loaded = settings.load()
    except HomeportError as error:
        return [failed("settings", error.message, error.hint)]
    with ThreadPoolExecutor(max_workers=len(CHECKS)) as pool:
        return [_leading_on(line) for found in pool.map(lambda check: _made(check, loaded), CHECKS) for line in found]


def _made(check: Callable[[Settings], Sequence[Check]], loaded: Settings) -> Sequence[Check]:
    """Its lines; where it cannot be made at all, a line that says why: the others are wanted most on a full disk."""
    try:
        return check(loaded)
    except HomeportError as error:
        why = error
    except OSError as error:
        why = from_system(error, "jobctl doctor --fix")
    return [failed(check.__name__.strip("_").replace("_", " "), cleaned(why.message), why.hint)]


def _leading_on(line: Check) -> Check:
    """An error's own hint may be to ask doctor."""
    return {**line, "fix": "mend what this says, then: jobctl up"} if line["fix"] == "jobctl doctor" else line


def _python(loaded: Settings) -> Sequence[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return [failed("python", f"{version} is older than 3.11", "install Python 3.11 or newer")]
    return [passed("python", version)]


def _sqlite(loaded: Settings) -> Sequence[Check]:
    if sqlite3.sqlite_version_info < SQLITE:
        return [failed("sqlite", f"{sqlite3.sqlite_version} has no STRICT tables", "install Python with SQLite 3.37")]
    return [passed("sqlite", sqlite3.sqlite_version)]


def _verifier(loaded: Settings) -> Sequence[Check]:
    """Imported in a child: a native library that crashes must not take jobctl along."""
    command = [sys.executable, "-I", "-c", "import numpy, llama_cpp; print(llama_cpp.__version__)"]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=VERIFIER_S, check=False)
    except subprocess.TimeoutExpired:  # a check's result, with what mends it
        return [failed("verifier", f"llama-cpp-python did not load in {VERIFIER_S:g} s", _INSTALL_VERIFIER)]
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"ended with {child.returncode}"])[-1]
        return [failed("verifier", cleaned(reason), _INSTALL_VERIFIER)]
    return [passed("verifier", f"llama-cpp-python {child.stdout.strip()}")]


_INSTALL_VERIFIER = "pip install 'homeport[verify]'"


def _rebuild(loaded: Settings) -> Sequence[Check]:
    """`deliver: rebuild`. Who has named an interpreter for it is warned; to others it is a thing they may want."""
    if sys.platform != "linux":
        return [skipped("rebuild", "files are rebuilt on Linux only; they are downloaded")]
    with tempfile.TemporaryDirectory(prefix="homeport-") as folder:  # a check leaves nothing in models_dir
        lacking = cleaned(asyncio.run(rebuild.Workshop(loaded.box_python, Path(folder)).lacking()))
    if not lacking:
        return [passed("rebuild", f"{loaded.box_python} has the packages; memory and room of a job: jobctl plan")]
    if loaded.box_python == Path(sys.executable):
        return [skipped("rebuild", f"{lacking}; for deliver: rebuild: {rebuild.INSTALL}")]
    return [warned("rebuild", lacking, rebuild.INSTALL)]


def _disk(loaded: Settings) -> Sequence[Check]:
    folder = _existing(loaded.paths.models)
    free = shutil.disk_usage(folder).free
    detail = f"{size(free)} free for models under {loaded.paths.models}"
    if not os.access(folder, os.W_OK):
        mend = f"chmod u+w {shlex.quote(str(folder))}   or set models_dir in config.toml"
        return [failed("disk", f"{folder} cannot be written to", mend)]
    if free < FREE_BYTES:
        return [warned("disk", detail, "make room, or set models_dir in config.toml")]
    return [passed("disk", detail)]


def _key(loaded: Settings) -> Sequence[Check]:
    try:
        return [passed("market key", settings.api_key(loaded.paths).hint)]
    except CredentialsRefused as error:
        return [failed("market key", error.message, error.hint)]


def _private_files(loaded: Settings) -> Sequence[Check]:
    """Keys, database and the folder of rows and logs are for this user alone."""
    exposed = [path for path in loaded.paths.private if path.exists() and platform.open_to_others(path)]
    if exposed:
        names = shlex.join(map(str, exposed))
        return [failed("private files", f"others can read {names}", f"chmod go= {names}")]
    return [passed("private files", "keys, database, rows and logs are readable by you alone")]


def _daemon(loaded: Settings) -> Sequence[Check]:
    """The daemon, and what it alone can check: market, account, orphans. Without it the market is asked from here."""
    client = Client(loaded.paths)
    try:
        health = client.health()
    except DaemonUnreachable as error:
        return [failed("daemon", error.message, error.hint), market_checks.unwatched(loaded)]
    except HomeportError as error:  # it answers, and cannot read its own database
        mend = store_checks.PUT_BACK if error.hint == "jobctl doctor" else error.hint  # damaged, or not to be had now
        return [failed("daemon", error.message, mend), market_checks.unwatched(loaded)]
    try:
        asked: Sequence[Check] = cleaned(client.doctor()["checks"])
    except HomeportError as error:
        asked = [failed("market", error.message, error.hint)]
    return [passed("daemon", f"version {health['version']}, market {health['market']}"), *asked, _attention(client)]


def _unread(loaded: Settings) -> Sequence[Check]:
    """Of a daemon that runs: it has read key and settings at its start."""
    files = unread(loaded.paths) if holder(loaded.paths) is not None else []
    if not files:
        return []
    names = ", ".join(map(str, files))
    return [warned("settings", f"the daemon that runs has not read what was written since: {names}", "jobctl up")]


def _attention(client: Client) -> Check:
    try:
        urgent = [item for item in client.jobs()["attention"] if item["urgent"]]
    except HomeportError as error:
        return failed("attention", cleaned(error.message), error.hint)
    if urgent:
        return warned("attention", cleaned("; ".join(item["text"] for item in urgent)), "jobctl status")
    return passed("attention", "no held job, no machine without a job")


CHECKS: tuple[Callable[[Settings], Sequence[Check]], ...] = (
    _python,
    _sqlite,
    _verifier,
    _rebuild,
    _disk,
    _key,
    _private_files,
    store_checks.folder,
    store_checks.database,
    store_checks.copied,
    market_checks.clock,
    message_checks.told,
    service,
    _unread,
    _daemon,
)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
