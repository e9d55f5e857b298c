"""The verbs that change a job: hold, resume, retry, accept, cancel, abandon."""

from __future__ import annotations

import getpass

import click

from daemon.cli.source import client
from daemon.cli.terminal import cleaned, examples, interactive, typed_number
from daemon.domain.holds import HoldReason
from daemon.errors import Refused

_JOB = click.argument("job")


@click.command(epilog=examples("jobctl hold k7f", "jobctl hold support-bot"))
@_JOB
def hold(job: str) -> None:
    """Hold JOB: what is valuable is brought home, then the machine waits for at most limits.hold dollars."""
    _say(client().hold(job, _me()))


@click.command(epilog=examples("jobctl resume k7f", "jobctl resume @last"))
@_JOB
def resume(job: str) -> None:
    """Let a held JOB go on."""
    _say(client().resume(job, _me()))


@click.command(epilog=examples("jobctl retry k7f", "jobctl retry k7f --from gguf"))
@_JOB
@click.option("--from", "stage", type=click.Choice(["sft", "dpo", "gguf"]), help="Begin again at this stage.")
def retry(job: str, stage: str | None) -> None:
    """A new attempt of JOB. Without --from the stage goes on from its newest whole checkpoint."""
    _say(client().retry(job, _me(), stage.upper() if stage else None))


@click.command(epilog=examples("jobctl accept k7f", "jobctl accept @last"))
@_JOB
def accept(job: str) -> None:
    """Accept a verified model whose spec says `destroy: ask`: its machine is returned."""
    daemon = client()
    view = daemon.job(job)["job"]
    held_for = view["hold"]["reason"] if view["hold"] else None
    if held_for != HoldReason.ASK_DESTROY:
        why = f"it is held for {held_for}" if held_for else f"it is {view['state']} and not held"
        raise Refused(f"{view['id']} does not wait to be accepted: {why}", hint=f"jobctl show {view['id']}")
    _say(daemon.resume(view["id"], _me()))


@click.command(epilog=examples("jobctl cancel k7f", "jobctl cancel k7f --discard"))
@_JOB
@click.option("--discard", is_flag=True, help="Do not save outputs that are not verified here.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def cancel(job: str, discard: bool, yes: bool) -> None:
    """End JOB. Outputs that are not verified here are saved and the job is held, unless --discard."""
    if discard and not yes:
        _require_terminal("--yes")
        click.confirm(f"Throw away what {job} has made so far?", default=False, abort=True, err=True)
    _say(client().cancel(job, _me(), discard))


@click.command(epilog=examples("jobctl abandon k7f", "jobctl abandon k7f --confirm 29481133"))
@_JOB
@click.option("--confirm", type=int, metavar="INSTANCE", help="The instance id, where nobody can be asked.")
def abandon(job: str, confirm: int | None) -> None:
    """Give JOB and its model up, and return its machine. Says what is lost; the instance id has to be typed."""
    daemon = client()
    terms = cleaned(daemon.abandon_terms(job))
    instance = terms["instance"]
    click.echo(
        f"Abandoning {terms['name']} ({terms['job']}) destroys instance {instance} and loses for ever:", err=True
    )
    for thing in terms["lost"]:
        click.echo(f"  - {thing}", err=True)
    if confirm is None:
        _require_terminal(f"--confirm {instance}")
        confirm = typed_number(f"Type the instance id ({instance}) to give it up")
    if confirm != instance:
        raise Refused(f"{confirm} is not the instance of {terms['job']}; nothing was done", hint=f"jobctl show {job}")
    _say(daemon.abandon(job, _me(), confirm))


def _say(answer: object) -> None:
    click.echo(cleaned(answer)["message"])


def _me() -> str:
    return getpass.getuser()


def _require_terminal(flag: str) -> None:
    if not interactive():
        raise click.UsageError(f"there is no terminal to ask on; give {flag}")
