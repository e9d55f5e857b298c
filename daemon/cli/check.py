"""`doctor` and `data-check`: what can be found out before anything is rented."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from daemon.cli.exits import Exit
from daemon.cli.terminal import cleaned, emit_json, examples, look, report
from daemon.errors import SpecError


@click.command(epilog=examples("jobctl doctor", "jobctl doctor --json"))
@click.option("--json", "as_json", is_flag=True, help="The checks as JSON.")
def doctor(as_json: bool) -> None:
    """Check this computer, the daemon and the market; every failure comes with the command that mends it."""
    from daemon.cli import checks
    from daemon.cli.screens import doctor as doctor_screen

    found = checks.run()
    if as_json:
        emit_json({"schema": "homeport.doctor/1", "checks": found})
    else:
        click.echo(doctor_screen.screen(found, look()))
    if any(check["status"] == "FAIL" for check in found):
        raise SystemExit(Exit.FAILED)


@click.command(
    name="data-check", epilog=examples("jobctl data-check data/sft.jsonl", "jobctl data-check pref.jsonl --kind dpo")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["sft", "dpo"]), help="What the rows are for; else what fits them better.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def data_check(file: Path, kind: str | None, as_json: bool) -> None:
    """Read every row of FILE: how it is understood, how many rows there are, and the first bad lines."""
    from daemon.domain.rows import read_rows

    reports = [read_rows(file, k) for k in ("sft", "dpo") if kind in (None, k)]
    found = min(reports, key=lambda each: (each.bad, -each.rows))
    if as_json:
        emit_json({"schema": "homeport.data/1", **cleaned(asdict(found) | {"path": str(file)})})
    else:
        form = f"{found.shape}, converted to the canonical form" if found.converted else found.shape
        click.echo(f"{file}: {found.rows} {found.kind.upper()} rows ({form})")
        click.echo(f"{found.duplicates} duplicates, {found.characters:,} characters, the longest row {found.longest:,}")
    if found.problems:
        if found.bad > len(found.problems):
            click.echo(f"{found.bad} bad rows; the first {len(found.problems)}:", err=True)
        if not as_json:
            report(SpecError(list(found.problems)))
        raise SystemExit(Exit.USAGE)
