"""`logs`, `metrics` and `wait`: a job while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import click

from daemon.cli.exits import Exit
from daemon.cli.source import Reading, Readings, read
from daemon.cli.terminal import cleaned, emit_json, examples, look
from daemon.cli.watch import detaching
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import MAIN_LINE, JobState
from daemon.errors import DaemonUnreachable
from daemon.store.readonly import LOG_PAGE
from daemon.store.shapes import JobPage, JobView, Log, Metric, Metrics

POLL_S = 0.3
ABSENT_S = 60.0  # a daemon that is started anew, or upgraded, is back by then

_T = TypeVar("_T")

# How a job that will not reach the wanted state any more ends the waiting.
UNVERIFIED = (HoldReason.VERIFY_FAILED, HoldReason.NOT_VERIFIED)
ENDED: dict[str, Exit] = {
    JobState.FAILED: Exit.JOB_FAILED,
    JobState.CANCELLED: Exit.JOB_ENDED,
    JobState.ABANDONED: Exit.JOB_ENDED,
    JobState.DESTROYED: Exit.FAILED,  # it went well, but not where it was waited for, as in --for CANCELLED
}


@dataclass
class _Following:
    """Reads again and again what the daemon moves. Without one the database answers, and nothing in it moves."""

    _answered: float = field(default_factory=time.monotonic)

    def read(self, ask: Callable[[Readings], _T]) -> Reading[_T]:
        """Raises DaemonUnreachable once there has been no daemon for ABSENT_S."""
        reading, now = read(ask), time.monotonic()
        if reading.live:
            self._answered = now
        elif now - self._answered >= ABSENT_S:
            raise DaemonUnreachable("the daemon is not running: nothing will change until it is", hint="jobctl up")
        return reading


@click.command(epilog=examples("jobctl logs k7f -f", "jobctl logs --daemon -n 50"))
@click.argument("job", required=False)
@click.option("-f", "--follow", "following", is_flag=True, help="Go on as it grows; Ctrl-C leaves the job running.")
@click.option("-n", "--lines", type=click.IntRange(1), default=200, show_default=True, help="How many of the last.")
@click.option("--daemon", "of_daemon", is_flag=True, help="The daemon's own log.")
@click.option("--json", "as_json", is_flag=True, help="The page as JSON.")
def logs(job: str | None, following: bool, lines: int, of_daemon: bool, as_json: bool) -> None:
    """What JOB's stages print on the machine, as far as it was mirrored home."""
    if of_daemon == (job is not None):
        raise click.UsageError("give either a job or --daemon")
    if of_daemon and (following or as_json):
        raise click.UsageError("-f and --json go with a job")
    if job is None:
        _daemon_log(lines)
        return
    reading = read(lambda source: source.log(job, -LOG_PAGE))
    page = reading.value
    if as_json:
        emit_json(reading.wire())
        raise SystemExit(reading.exit_code)
    tail = page["text"].splitlines(keepends=True)[-lines:]
    click.echo("".join(tail) or f"nothing has been mirrored from {page['job']} yet\n", nl=False)
    if following:
        _go_on(page["job"], page["offset"])
    raise SystemExit(reading.exit_code)


def _go_on(job: str, offset: int) -> None:
    """Until the job has ended: after the look that finds it so, one more at the log."""

    def page(source: Readings) -> Log:
        return source.log(job, offset)

    def look_at(source: Readings) -> JobPage:
        return source.job(job)

    ended, following = False, _Following()
    with detaching(f"jobctl logs {job} -f"):
        while True:
            grown = following.read(page).value
            offset = grown["offset"]
            click.echo(grown["text"], nl=False)
            if grown["text"]:
                continue
            if ended:
                return
            ended = following.read(look_at).value["job"]["state"] in ENDED
            time.sleep(POLL_S)


def _daemon_log(lines: int) -> None:
    from daemon import settings

    file = settings.load().paths.log
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    click.echo(cleaned("".join(text.splitlines(keepends=True)[-lines:])), nl=False)


@click.command(epilog=examples("jobctl metrics k7f", "jobctl metrics k7f --plot loss"))
@click.argument("job")
@click.option(
    "-n", "--lines", type=click.IntRange(1), default=20, show_default=True, help="How many of the last steps."
)
@click.option("--plot", "key", metavar="NAME", help="Draw one figure over all steps: loss, lr, grad_norm, tok_s...")
@click.option("--json", "as_json", is_flag=True, help="Every step as JSON, one object a line.")
def metrics(job: str, lines: int, key: str | None, as_json: bool) -> None:
    """Loss, learning rate and speed of every step."""
    from daemon.cli.screens import metrics as metrics_screen

    steps, live = _all_steps(job)
    if as_json:
        for step in steps:
            emit_json(step, line=True)
    elif key:
        click.echo(metrics_screen.plot(steps, key, look()))
    else:
        click.echo(metrics_screen.screen(steps[-lines:], look()))
    raise SystemExit(Exit.OK if live else Exit.NO_DAEMON)


def _all_steps(job: str) -> tuple[list[Metric], bool]:
    steps: list[Metric] = []

    def page(source: Readings) -> Metrics:
        return source.metrics(job, steps[-1]["cursor"] if steps else 0)

    while True:
        reading = read(page)
        if not reading.value["metrics"]:
            return steps, reading.live
        steps += reading.value["metrics"]
        job = reading.value["job"]  # @last stays this job when another is submitted


@click.command(epilog=examples("jobctl wait k7f --for DESTROYED --timeout 8h", "jobctl wait @last --for VERIFIED"))
@click.argument("job")
@click.option(
    "--for",
    "wanted",
    type=click.Choice([str(s) for s in JobState], case_sensitive=False),
    default="DESTROYED",
    show_default=True,
)
@click.option("--timeout", metavar="DURATION", help="30s, 15m, 8h: then exit 7.")
def wait(job: str, wanted: str, timeout: str | None) -> None:
    """Wait until JOB is in a state or beyond it.

    \b
    Ends with 0 when it is, 7 on time-out, 8 when the job failed, 9 when it was cancelled or
    abandoned, 10 when verification failed, 11 when the job is held for another reason,
    4 when the daemon has been down for a minute.
    """
    raise SystemExit(wait_for(job, wanted.upper(), timeout_s=_seconds(timeout) if timeout else None))


def wait_for(job: str, wanted: str, *, timeout_s: float | None) -> Exit:
    """Follow `job` until it is at `wanted` or cannot get there; says every change on standard error."""
    from daemon.cli.screens.jobs import state

    def look_at(source: Readings) -> JobPage:
        return source.job(job)

    began, told, following = time.monotonic(), "", _Following()
    with detaching(f"jobctl wait {job} --for {wanted}"):
        while True:
            view = following.read(look_at).value["job"]
            job = view["id"]  # @last stays this job when another is submitted
            if told != (now := state(view)):
                click.echo(f"{view['id']}  {now}", err=True)
                told = now
            if (end := verdict(view, wanted)) is not None:
                _say_why(view, end)
                return end
            if timeout_s is not None and time.monotonic() - began >= timeout_s:
                click.echo(f"{view['id']} is still {now} after {timeout_s:g} s", err=True)
                return Exit.TIMED_OUT
            time.sleep(POLL_S)


def verdict(view: JobView, wanted: str) -> Exit | None:
    """How the waiting ends, None while it goes on."""
    if _reached(view["state"], wanted):
        return Exit.OK
    if view["state"] in ENDED:
        return ENDED[view["state"]]
    if view["hold"] is None:
        return None
    return Exit.NOT_VERIFIED if view["hold"]["reason"] in UNVERIFIED else Exit.ATTENTION


def _reached(state: str, wanted: str) -> bool:
    """Whether `state` is `wanted` or lies behind it on the main line."""
    if state == wanted:
        return True
    line = [str(s) for s in MAIN_LINE]
    return state in line and wanted in line and line.index(state) >= line.index(wanted)


def _say_why(view: JobView, end: Exit) -> None:
    if hold := view["hold"]:
        click.echo(f"{hold['meaning']}{': ' + hold['detail'] if hold['detail'] else ''}", err=True)
        click.echo(f"Try: {'   or   '.join(hold['commands'])}", err=True)
    elif end is Exit.OK:
        click.echo(f"Model safe here?  {view['safety']['text']}", err=True)


def _seconds(text: str) -> float:
    from daemon.domain import units

    try:
        return units.seconds(text)
    except ValueError as error:
        raise click.UsageError(f"--timeout {text!r}: expected {error}") from error
