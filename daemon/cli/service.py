"""`up` and `down`: the daemon as a background service of this user."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import click

from daemon import settings
from daemon.api.client import Client
from daemon.cli.source import read_leases
from daemon.cli.terminal import cents, cleaned, examples, report
from daemon.errors import DaemonUnreachable, HomeportError, Refused
from daemon.service import program as programs
from daemon.service.holder import holder, unread
from daemon.service.program import Program
from daemon.service.system import Standing, System, put, remove, this_system
from daemon.settings import Paths
from daemon.store import backups, high_water
from daemon.store.shapes import UNSURE

ANSWERS_WITHIN_S = 120.0  # its first look at the market comes first, and the market may be slow
LOOK_EVERY_S = 0.2


@click.command(epilog=examples("jobctl up", "HOMEPORT_HOME=/srv/homeport jobctl up"))
def up() -> None:
    """Set the daemon up as a background service of this user, start it, and wait until it answers.

    May be called again: a changed environment, key, config.toml or version is taken over. Nothing that is rented is
    touched.
    """
    loaded = settings.load()
    backups.refuse_lost(loaded.paths.database, loaded.paths.backups)
    system, program = this_system(), programs.of(loaded.paths)
    before = _standing(system, program, loaded.paths)
    key = settings.api_key(loaded.paths)
    dropped = programs.dropped(program)
    changed = programs.write_environment(program)
    changed |= put(system, program)
    old = _daemon(loaded.paths)
    other_version = old is not None and old["version"] != version("homeport")
    if started := changed or not before.running or other_version or bool(unread(loaded.paths)):
        system.start(program)
    health = _answer(system, program, loaded.paths, ended=old if started else None)
    became = "installed" if changed else "restarted" if started else "in place"
    click.echo(f"{became:<12}{system.NAME} {system.file(program)}")
    click.echo(f"running     version {health['version']}, market {cleaned(health['market'])}, key of {key.hint}")
    for advice in system.standing(program).advice:
        click.echo(f"note        {advice.detail}{f'; to keep it: {advice.fix}' if advice.fix else ''}")
    for name in dropped:
        click.echo(
            f"note        {name} is not set here: the service has it no more; to keep it: set it, then jobctl up"
        )
    click.echo(f"log         jobctl logs --daemon   or: {system.log_command(program)}")


@click.command(epilog=examples("jobctl down", "jobctl down --uninstall"))
@click.option("--uninstall", is_flag=True, help="Remove the service too; models, receipts and database stay.")
def down(uninstall: bool) -> None:
    """Stop the background service, now and at the next log-in, and list what goes on billing without it."""
    loaded = settings.load()
    try:
        _end(programs.of(loaded.paths), loaded.paths, uninstall)
    except HomeportError as error:  # said first: what bills may not be to be had either
        report(error)
        _what_bills(loaded.paths, watched=holder(loaded.paths) is not None)
        raise SystemExit(error.exit_code) from error
    _what_bills(loaded.paths, watched=holder(loaded.paths) is not None)


def _end(program: Program, paths: Paths, uninstall: bool) -> None:
    system = this_system()
    was = _standing(system, program, paths)
    if uninstall:
        remove(system, program)
        click.echo(f"removed     {system.NAME} {system.file(program)}; models, receipts and database stay")
    elif was.installed:
        system.stop(program)
        click.echo(f"stopped     {system.NAME} {system.file(program)}; it does not start at log-in any more")
    else:
        click.echo(f"no {system.NAME} is installed; nothing was done")


def _standing(system: System, program: Program, paths: Paths) -> Standing:
    """The service's. Raises Refused for a daemon that a person started: it is theirs to end, and never has a second."""
    process = holder(paths)
    try:
        found = system.standing(program)
        if found.running or process is None:
            return found
    except Refused:  # no service manager answers here, so what runs was started by hand
        if process is None:
            raise
    raise Refused(
        f"jobd runs by hand (process {process}), not as a service",
        hint=f"end it (Ctrl-C in its terminal, or kill {process})",
    )


def _answer(system: System, program: Program, paths: Paths, ended: dict[str, Any] | None) -> dict[str, Any]:
    """What the daemon says of itself, once it answers, and not the one that was `ended`. Raises Refused else."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        try:
            health = Client(paths).health()
        except DaemonUnreachable as error:
            why = error.message
        else:
            if ended is None or health.get("pid") != ended.get("pid"):
                return health
            why = "the daemon that ran before still answers"
        if not system.standing(program).running or time.monotonic() > deadline:
            raise Refused(f"the service does not come up: {why}", hint=system.log_command(program))
        time.sleep(LOOK_EVERY_S)


def _daemon(paths: Paths) -> dict[str, Any] | None:
    """What the daemon that answers now says of itself."""
    try:
        return Client(paths).health()
    except DaemonUnreachable:
        return None  # there is none, or it is starting


def _what_bills(paths: Paths, *, watched: bool) -> None:
    installed = (paths.database, paths.database.with_name(high_water.NAME), *backups.copies(paths.backups))
    if not any(each.exists() for each in installed):
        return  # nothing was ever rented from here
    reading = read_leases().value
    billing = [lease for lease in reading["leases"] if lease["state"] in ("LIVE", "LOST")]
    unsure = [item for item in reading["attention"] if item["kind"] in UNSURE]
    for lease in billing:
        click.echo(
            f"bills on    instance {lease['instance']}  {cents(lease['rate'])}/h  job {lease['job'] or '(none)'}"
        )
    for item in unsure:
        click.echo(f"may bill    {item['text']}")
    if billing:
        total = cents(reading["money"]["rate"])
        unwatched = "nobody watches these machines, brings models home or returns them until `jobctl up`"
        click.echo(f"{total}/h goes on: {'the daemon that runs watches these machines' if watched else unwatched}.")
    elif unsure:
        click.echo("Nothing is known to be rented; nobody looks for what may bill until `jobctl up`.")
    else:
        click.echo("Nothing is being rented. $0.00/h.")
