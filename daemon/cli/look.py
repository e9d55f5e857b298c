"""`status` and `show`."""

from __future__ import annotations

import time

import click

from daemon.cli.exits import Exit
from daemon.cli.source import Reading, banner, read
from daemon.cli.terminal import Look, emit_json, examples, look
from daemon.cli.watch import watch
from daemon.domain.lifecycle import TERMINAL
from daemon.store.shapes import JobPage, Jobs

RECENT_ENDED = 3  # ended jobs on the screen without --all


@click.command(epilog=examples("jobctl status -w", "jobctl status --check || echo 'something needs you'"))
@click.option("-a", "--all", "everything", is_flag=True, help="Ended jobs too; else the last three.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Draw it again every two seconds.")
@click.option(
    "--check", is_flag=True, help="Exit 11 when a job is held, a machine bills that should not, or the disk is full."
)
@click.option("--json", "as_json", is_flag=True, help="The whole reading as JSON.")
def status(everything: bool, watching: bool, check: bool, as_json: bool) -> None:
    """All jobs, what they cost, and what needs you. Works without the daemon, and says how old the figures are."""

    def draw(drawn: Look) -> Exit:
        reading = read(lambda source: source.jobs())
        if as_json:
            emit_json(reading.wire(), line=watching)
        else:
            _print_jobs(reading, everything, drawn)
        if check and any(item["urgent"] for item in reading.value["attention"]):
            return Exit.ATTENTION
        return reading.exit_code

    if watching:
        watch(draw, come_back="jobctl status -w", clear=not as_json)
    raise SystemExit(draw(look()))


@click.command(epilog=examples("jobctl show @last", "jobctl show k7f --json"))
@click.argument("job")
@click.option("-w", "--watch", "watching", is_flag=True, help="Draw it again every two seconds.")
@click.option("--json", "as_json", is_flag=True, help="The whole reading as JSON.")
def show(job: str, watching: bool, as_json: bool) -> None:
    """Everything about JOB: an id, its first letters, a name, or @last."""

    def draw(drawn: Look) -> Exit:
        reading = read(lambda source: source.job(job))
        if as_json:
            emit_json(reading.wire(), line=watching)
        else:
            _print_job(reading, drawn)
        return reading.exit_code

    if watching:
        watch(draw, come_back=f"jobctl show {job} -w", clear=not as_json)
    raise SystemExit(draw(look()))


def _print_jobs(reading: Reading[Jobs], everything: bool, drawn: Look) -> None:
    from daemon.cli.screens import jobs

    value = reading.value
    live = [job for job in value["jobs"] if job["state"] not in TERMINAL]
    ended = [job for job in value["jobs"] if job["state"] in TERMINAL]
    shown: Jobs = {**value, "jobs": live + (ended if everything else ended[:RECENT_ENDED])}
    lines = [*banner(reading, value["money"], drawn), jobs.screen(shown, drawn, time.time())]
    if reading.live and value["money"]["kept_awake"]:
        lines.append("Keeping this computer awake: a model comes home.")
    click.echo("\n".join(lines))


def _print_job(reading: Reading[JobPage], drawn: Look) -> None:
    from daemon.cli.screens import job

    lines = [*banner(reading, reading.value["money"], drawn), job.screen(reading.value, drawn, time.time())]
    click.echo("\n".join(lines))
