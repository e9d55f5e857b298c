"""The verbs that change a job: hold, resume, retry, accept, cancel, abandon."""

from __future__ import annotations

import click

from daemon import platform
from daemon.api.client import Client
from daemon.cli.source import client
from daemon.cli.terminal import cleaned, examples, interactive, typed_number
from daemon.errors import Refused

_JOB = click.argument("job")


@click.command(epilog=examples("jobctl hold k7f", "jobctl hold support-bot"))
@_JOB
def hold(job: str) -> None:
    """Hold JOB: what is valuable is brought home; machine and training go on for at most limits.hold dollars."""
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


@click.command(epilog=examples("jobctl accept k7f", "jobctl accept k7f --level L4 --confirm support-bot"))
@_JOB
@click.option("--level", type=click.Choice(["L4", "L3"]), help="Nothing above it can run here; it counts as verified.")
@click.option("--confirm", metavar="NAME", help="The job's name, with --level.")
def accept(job: str, level: str | None, confirm: str | None) -> None:
    """Accept a verified model whose spec says `destroy: ask`: its machine is returned.

    With --level: accept that a level of verification cannot run on this computer. The receipt says who did. A level
    that ran and failed is never accepted.
    """
    if confirm and not level:
        raise click.UsageError("--confirm goes with --level")
    if level and confirm is None and interactive():
        confirm = click.prompt("Type the job's name to accept less than L5", err=True)
    _say(client().accept(job, _me(), level, confirm))


_CONFIRM = click.option("--confirm", type=int, metavar="INSTANCE", help="The instance id, where nobody can be asked.")


@click.command(epilog=examples("jobctl cancel k7f", "jobctl cancel k7f --discard"))
@_JOB
@click.option("--discard", is_flag=True, help="Save nothing; asks for the instance id, as abandon does.")
@_CONFIRM
def cancel(job: str, discard: bool, confirm: int | None) -> None:
    """End JOB. Outputs that are not verified here are saved and the job is held, unless --discard."""
    daemon = client()
    if discard:
        confirm = _confirmed(daemon, job, confirm)
    _say(daemon.cancel(job, _me(), discard, confirm))


@click.command(epilog=examples("jobctl abandon k7f", "jobctl abandon k7f --confirm 29481133"))
@_JOB
@_CONFIRM
def abandon(job: str, confirm: int | None) -> None:
    """Give JOB and its model up, and return its machine. Says what is lost; the instance id has to be typed."""
    daemon = client()
    _say(daemon.abandon(job, _me(), _confirmed(daemon, job, confirm)))


def _confirmed(daemon: Client, job: str, confirm: int | None) -> int | None:
    """The instance id, typed or given, after what is lost was said; None where no machine is rented."""
    terms = cleaned(daemon.abandon_terms(job))
    instance: int | None = terms["instance"]
    click.echo(f"Giving up {terms['name']} ({terms['job']}) loses for ever:", err=True)
    for thing in terms["lost"]:
        click.echo(f"  - {thing}", err=True)
    if instance is None:
        return None
    if confirm is None:
        if not interactive():
            raise click.UsageError(f"there is no terminal to ask on; give --confirm {instance}")
        confirm = typed_number(f"Type the instance id ({instance}) to give it up")
    if confirm != instance:
        raise Refused(f"{confirm} is not the instance of {terms['job']}; nothing was done", hint=f"jobctl show {job}")
    return confirm


def _say(answer: object) -> None:
    click.echo(cleaned(answer)["message"])


def _me() -> str:
    return platform.user_name()
