"""`plan` and `submit`."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import click

from daemon.cli.exits import Exit
from daemon.cli.path import text_of
from daemon.cli.screens import plan as plan_screen
from daemon.cli.source import client
from daemon.cli.terminal import cleaned, emit_json, examples, interactive, look
from daemon.domain.lifecycle import TERMINAL

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.command(epilog=examples("jobctl plan job.yaml", "jobctl plan job.yaml --why"))
@_FILE
@click.option("--why", is_flag=True, help="List every offer that is not taken, with the reason.")
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
def plan(file: Path, why: bool, as_json: bool) -> None:
    """What the job in FILE would do and cost: steps, time, money, machines. Nothing is spent."""
    text = text_of(file)
    found = cleaned(client().plan(text, str(file), _folder(file)))
    if as_json:
        emit_json({"schema": "homeport.plan/1", **found})
    else:
        click.echo(plan_screen.screen(found, look(), why=why))
    if found["problems"]:
        raise SystemExit(Exit.FAILED)
    if not found["offers"]:
        raise SystemExit(Exit.NOTHING_FITS)


@click.command(epilog=examples("jobctl submit job.yaml", "jobctl submit job.yaml -y --wait"))
@_FILE
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", "waiting", is_flag=True, help="Stay until the job ends; Ctrl-C leaves it running.")
@click.option("--again", is_flag=True, help="A new job, even if this very file was submitted before.")
@click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")
def submit(file: Path, yes: bool, waiting: bool, again: bool, as_json: bool) -> None:
    """Queue the job in FILE. Paths in it are relative to its folder. The same file submitted twice is one job."""
    text, folder, daemon = text_of(file), _folder(file), client()
    if interactive() and not yes:
        click.echo(plan_screen.screen(cleaned(daemon.plan(text, str(file), folder)), look(), why=False), err=True)
        if not click.confirm("Rent and train?", default=False, err=True):
            click.echo("nothing was queued", err=True)
            raise SystemExit(Exit.FAILED)
    request = secrets.token_hex(32) if again else request_id(text, folder)
    answer = cleaned(daemon.submit(text, str(file), folder, request))
    job = answer["job"]
    if as_json:
        emit_json({"schema": "homeport.submitted/1", **answer})
    elif answer["created"]:
        click.echo(f"{job}  {answer['name']} is queued.   Look: jobctl show {job}")
    else:
        lives = daemon.job(job)["job"]["state"] not in TERMINAL  # and its name is taken
        first = f", once this one has ended (jobctl cancel {job})" if lives else ""
        click.echo(
            f"{job}  {answer['name']} is this very file, submitted before: still one job. A new one{first}: --again"
        )
    if waiting:
        from daemon.cli.follow import wait_for

        raise SystemExit(wait_for(job, "DESTROYED", timeout_s=None))


def request_id(text: str, folder: str) -> str:
    """Names this submit: the same text in the same folder is the same wish."""
    return hashlib.sha256(f"{folder}\0{text}".encode()).hexdigest()


def _folder(file: Path) -> str:
    return str(file.resolve().parent)
