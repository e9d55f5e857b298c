"""The command: a table of verbs, each imported when it is called; errors turned into words and exit codes."""

from __future__ import annotations

import errno
import importlib
import keyword
from dataclasses import dataclass
from typing import Any

import click

from daemon.cli.exits import MEANING, Exit
from daemon.errors import HomeportError, from_system


@dataclass(frozen=True)
class Verb:
    module: str  # of daemon.cli; its function is named like the verb, with _ behind a word of Python's
    summary: str


VERBS: dict[str, Verb] = {
    "plan": Verb("submit", "What a job file would do and cost. Nothing is spent."),
    "submit": Verb("submit", "Queue a job: rent, train, bring home, verify, return."),
    "data-check": Verb("rows", "Check data files and show how they are understood."),
    "status": Verb("look", "All jobs, what they cost, and what needs you."),
    "show": Verb("look", "Everything about one job, and whether its model is safe."),
    "logs": Verb("follow", "What a job's stages print."),
    "metrics": Verb("follow", "Loss, learning rate and speed, step by step."),
    "wait": Verb("follow", "Wait until a job reaches a state."),
    "verify": Verb("verify", "Verify a model on this disk again: a job's, a folder, or any GGUF."),
    "hold": Verb("steer", "Save what a job has, and wait for your word; the machine runs up to a price."),
    "resume": Verb("steer", "Let a held job go on."),
    "retry": Verb("steer", "Run a stage again, from its newest checkpoint or from another stage."),
    "accept": Verb("steer", "Say that a verified model is good: its machine is returned."),
    "cancel": Verb("steer", "End a job; what is worth saving is saved first."),
    "abandon": Verb("steer", "Give a model up and return its machine. Asks for the instance id."),
    "pull": Verb("bring", "Bring a checkpoint of a job here, wherever it lies."),
    "fetch": Verb("bring", "Bring files of a machine rented by hand; it is left as it is."),
    "leases": Verb("machines", "Every machine rented, and what it bills."),
    "offers": Verb("machines", "What the market offers, and why an offer is not taken."),
    "adopt": Verb("machines", "Take back a machine whose job the database does not know any more."),
    "write-off": Verb("machines", "Stop counting on a machine that cannot be returned."),
    "doctor": Verb("check", "Is everything in place on this computer and at the market?"),
    "notify": Verb("notify", "How you are told; `notify test` tries every channel."),
    "report": Verb("report", "Everything about one job in a file for somebody who helps; no secrets, no rows."),
    "up": Verb("service", "Keep the daemon running in the background, also after the next log-in."),
    "down": Verb("service", "Stop the background service, and list what goes on billing."),
    "export": Verb("move", "Move all live jobs to another computer: write them into a file."),
    "import": Verb("move", "Make this computer the home of what export wrote."),
    "serve": Verb("serve", "Run the daemon here until it is stopped."),
    "sandbox": Verb("serve", "A local market with local machines, for trying out."),
    "demo": Verb("serve", "The whole line on this computer: no account, no GPU, no money."),
}


class Jobctl(click.Group):
    """Knows its verbs without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"daemon.cli.{VERBS[cmd_name].module}")
        function = cmd_name.replace("-", "_") + ("_" if keyword.iskeyword(cmd_name) else "")
        command: click.Command = getattr(module, function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            import difflib

            near = difflib.get_close_matches(args[0], VERBS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no verb {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs from the table: asking each command for its help would import them all."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in MEANING.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HomeportError as error:
            from daemon.cli.terminal import report

            report(error)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read us has enough: click ends without a word
                raise
            from daemon.cli.terminal import report

            verb = ctx.invoked_subcommand
            report(from_system(error, f"jobctl {verb} --help" if verb else "jobctl doctor"))
            ctx.exit(Exit.FAILED)
        except (KeyboardInterrupt, click.Abort):  # Abort: the same, while a question was open
            click.echo("\ninterrupted", err=True)
            ctx.exit(Exit.INTERRUPTED)
        except RuntimeError as error:  # pathlib knows no narrower one for a user without a home, as in a container
            if "home directory" not in str(error):
                raise
            from daemon.cli.terminal import report

            report(HomeportError("this user has no home directory", hint="export HOMEPORT_HOME=/a/folder/of/yours"))
            ctx.exit(Exit.FAILED)


@click.group(
    cls=Jobctl,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  jobctl demo --quick\n  jobctl submit job.yaml --wait",
)
@click.version_option(None, "-V", "--version", package_name="homeport", message="jobctl %(version)s")
def jobctl() -> None:
    """Rent a GPU, train, bring the model home, prove it is whole, and only then let the machine go."""
