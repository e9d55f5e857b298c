"""`leases`, `offers` and `write-off`: the market's side."""

from __future__ import annotations

import time
from pathlib import Path

import click

from daemon import platform
from daemon.cli.exits import Exit
from daemon.cli.path import text_of
from daemon.cli.source import banner, client, read_leases
from daemon.cli.terminal import cleaned, emit_json, examples, interactive, look, typed_number
from daemon.errors import Refused


@click.command(epilog=examples("jobctl leases", "jobctl leases --check"))
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that are gone.")
@click.option("--check", is_flag=True, help="Exit 11 when a machine bills that should not, or the disk is full.")
@click.option("--json", "as_json", is_flag=True, help="Every lease as JSON.")
def leases(everything: bool, check: bool, as_json: bool) -> None:
    """Every machine that may bill, what it costs, and whose it is."""
    from daemon.cli.screens import leases as leases_screen

    reading = read_leases()
    if as_json:
        emit_json(reading.wire())
    else:
        drawn = look()
        screen = leases_screen.screen(reading.value, drawn, time.time(), everything=everything)
        click.echo("\n".join([*banner(reading, reading.value["money"], drawn), screen]))
    if check and any(item["urgent"] for item in reading.value["attention"]):
        raise SystemExit(Exit.ATTENTION)
    raise SystemExit(reading.exit_code)


@click.command(epilog=examples("jobctl offers --gpu H100_SXM --count 8", "jobctl offers --max-price 0.50 --why"))
@click.option("--gpu", multiple=True, metavar="NAME", help="Only this GPU; may be given several times.")
@click.option("--count", type=click.IntRange(1), help="GPUs in one machine.")
@click.option(
    "--max-price",
    metavar="DOLLARS",
    type=click.FloatRange(0, min_open=True),
    help="Dollars per hour, all GPUs and the disk.",
)
@click.option("--why", is_flag=True, help="List every offer that is not taken, with the reason.")
@click.option("--json", "as_json", is_flag=True, help="The offers as JSON.")
def offers(gpu: tuple[str, ...], count: int | None, max_price: float | None, why: bool, as_json: bool) -> None:
    """What can be rented now, best first."""
    from daemon.cli.screens import plan

    asked = {"gpu": list(gpu) or None, "count": count, "max_price": None if max_price is None else str(max_price)}
    found = cleaned(client().offers(**{name: value for name, value in asked.items() if value is not None}))
    if as_json:
        emit_json({"schema": "homeport.offers/1", **found})
    else:
        click.echo(plan.offers(found["offers"], found["rejected"], look(), why=why))
    if not found["offers"]:
        raise SystemExit(Exit.NOTHING_FITS)


@click.command(epilog=examples("jobctl adopt 29481133 job.yaml", "jobctl adopt 29481133 ~/bots/support.yaml"))
@click.argument("instance", type=click.IntRange(1))
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def adopt(instance: int, file: Path) -> None:
    """Take INSTANCE back, whose job the database does not know any more. FILE is the job file it was submitted with.

    Nothing is trained again: the job is held, and resume goes on with what the machine has done.
    """
    answer = client().adopt(instance, text_of(file), str(file), str(file.resolve().parent), platform.user_name())
    click.echo(cleaned(answer)["message"])


@click.command(
    name="write-off", epilog=examples("jobctl write-off 29481133", "jobctl write-off 29481133 --confirm 29481133")
)
@click.argument("instance", type=click.IntRange(1))
@click.option("--confirm", type=int, metavar="INSTANCE", help="The same id again, where nobody can be asked.")
def write_off(instance: int, confirm: int | None) -> None:
    """Stop counting on INSTANCE, which cannot be returned. It may go on billing; it is watched for ever."""
    if confirm is None:
        if not interactive():
            raise click.UsageError(f"there is no terminal to ask on; give --confirm {instance}")
        click.echo(f"Instance {instance} may go on billing: end it in the market's console too.", err=True)
        confirm = typed_number("Type the instance id to write it off")
    if confirm != instance:
        raise Refused(f"{confirm} is not {instance}; nothing was done", hint="jobctl leases")
    click.echo(cleaned(client().write_off(instance, platform.user_name(), confirm))["message"])
