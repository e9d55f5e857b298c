"""`pull` and `fetch`: files brought here because a person asks, with a line that tells how far they are."""

from __future__ import annotations

import time
from pathlib import Path

import click

from daemon import platform
from daemon.api.client import Client
from daemon.api.messages import Transfer
from daemon.cli.source import client
from daemon.cli.terminal import Look, cleaned, duration, emit_json, examples, look, size
from daemon.errors import TransferFailed

POLL_S = 0.5
_JSON = click.option("--json", "as_json", is_flag=True, help="The finished transfer as JSON.")


@click.command(epilog=examples("jobctl pull k7f", "jobctl pull k7f --checkpoint 200 --to ./checkpoints"))
@click.argument("job")
@click.option("--checkpoint", default="latest", metavar="latest|N", help="The newest whole one, or that of a step.")
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Default: here.")
@_JSON
def pull(job: str, checkpoint: str, to: Path, as_json: bool) -> None:
    """Bring a checkpoint of JOB here now, whole and hashed. Training goes on meanwhile."""
    daemon = client()
    started = daemon.pull(job, platform.user_name(), checkpoint, str(to.absolute()))
    _told(_follow(daemon, started["transfer"], look()), as_json)


@click.command(
    epilog=examples(
        "jobctl fetch --instance 29481133 --path '/workspace/out/*.gguf' --to ./model",
        "jobctl fetch --instance 29481133 --path '~/out/**' --to . --host-key SHA256:...",
    )
)
@click.option(
    "--instance", type=click.IntRange(1), required=True, metavar="ID", help="Any running machine of this account."
)
@click.option(
    "--path", "pattern", required=True, metavar="GLOB", help="Files there; quote it, or the shell expands it."
)
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder here.")
@click.option("--host-key", metavar="SHA256:...", help="The machine's fingerprint, compared by you; needed once.")
@_JSON
def fetch(instance: int, pattern: str, to: Path, host_key: str | None, as_json: bool) -> None:
    """Bring files of a machine that was rented by hand: several connections, read back and hashed, resumable.

    The machine is neither stopped nor destroyed, and goes on billing.
    """
    daemon = client()
    started = daemon.fetch(instance, pattern, str(to.absolute()), host_key)
    _told(_follow(daemon, started["transfer"], look()), as_json)
    if not as_json:
        click.echo(_still_there(instance, started["job"]))


def _still_there(instance: int, job: str | None) -> str:
    """Nobody is to end a machine whose model is not verified yet."""
    if job is not None:
        return f"Instance {instance} is the machine of job {job}, which goes on: jobctl show {job}"
    return f"Instance {instance} is as it was and goes on billing; end it in the market's console."


def _follow(daemon: Client, number: int, drawn: Look) -> Transfer:
    """Until it ends. Raises TransferFailed with what ended it."""
    while (seen := daemon.transfer(number))["state"] == "RUNNING":
        if drawn.live:
            click.echo(f"\r{drawn.clip(progress(seen, drawn), drawn.width - 1):<{drawn.width - 1}}", nl=False, err=True)
        time.sleep(POLL_S)
    if drawn.live:
        click.echo(f"\r{'':<{drawn.width - 1}}\r", nl=False, err=True)
    if seen["problem"] is not None:
        raise TransferFailed(seen["problem"], hint=seen["hint"] or "the same command again goes on where it was")
    return seen


def progress(seen: Transfer, drawn: Look) -> str:
    """`████░░░░ 4.1 GB of 6.2 GB   93.4 MB/s   22s left   261.1 kB sent again`"""
    if not seen["total"]:
        return f"reading and hashing on the machine before anything moves, {duration(seen['seconds'])}"
    parts = [f"{drawn.bar(seen['done'], seen['total'])} {size(seen['done'])} of {size(seen['total'])}"]
    parts.append(f"{seen['per_s'] / 1e6:,.1f} MB/s")
    if seen["eta_s"] is not None:
        parts.append(f"{duration(seen['eta_s'])} left")
    if seen["resent"]:
        parts.append(f"{size(seen['resent'])} sent again")
    return "   ".join(parts)


def _told(done: Transfer, as_json: bool) -> None:
    seen: Transfer = cleaned(done)
    if as_json:
        emit_json({"schema": "homeport.transfer/1", **seen})
        return
    for file in seen["files"]:
        click.echo(f"{file['sha256']}  {file['path']}  {size(file['size'])}")
        if "floor" in file:
            side = "above" if file["above_floor"] else "NOT above"
            click.echo(f"  floor of a 7B or 8B {file['quant']}: {size(file['floor'])}; this is {side} it")
    again = f", {size(seen['resent'])} sent again" if seen["resent"] else ""
    click.echo(f"{len(seen['files'])} files, {size(seen['total'])} in {duration(seen['seconds'])}{again}: {seen['to']}")
