"""`doctor`: is everything in place before anything is rented?"""

from __future__ import annotations

import click

from daemon.cli.exits import Exit
from daemon.cli.terminal import emit_json, examples, look


@click.command(epilog=examples("jobctl doctor", "jobctl doctor --fix"))
@click.option("--fix", is_flag=True, help="Mend what can be mended without you, then check again.")
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON.")
def doctor(fix: bool, as_json: bool) -> None:
    """Check this computer, the daemon and the market; every failure comes with the command that mends it."""
    from daemon.cli import checks, repairs
    from daemon.cli.screens import doctor as doctor_screen

    found = checks.run()
    if fix and (done := repairs.mend(found)):
        for line in done:
            click.echo(f"mended: {line}", err=True)
        found = checks.run()
    if as_json:
        emit_json({"schema": "homeport.doctor/1", "checks": found})
    else:
        click.echo(doctor_screen.screen(found, look()))
    if any(check["status"] == "FAIL" for check in found):
        raise SystemExit(Exit.FAILED)
