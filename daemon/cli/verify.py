"""`verify`: what lies on this disk, once more."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import click

from daemon import settings
from daemon.artifacts import scrub
from daemon.artifacts.levels import Level
from daemon.artifacts.presence import size_lines
from daemon.artifacts.verify import Report
from daemon.cli.exits import Exit
from daemon.cli.path import expanded
from daemon.cli.source import read
from daemon.cli.terminal import cleaned, emit_json, examples
from daemon.errors import Refused


@click.command(epilog=examples("jobctl verify @last", "jobctl verify model.gguf --base ~/models/Qwen2.5-7B-Instruct"))
@click.argument("what", metavar="JOB|PATH")
@click.option("--base", type=click.Path(path_type=Path, exists=True, file_okay=False), help="The base model's folder.")
@click.option("--sha256", metavar="HEX", help="What a lone GGUF should hash to; else SHA256SUMS beside it is asked.")
@click.option("--json", "as_json", is_flag=True, help="Every level with its numbers as JSON.")
def verify(what: str, base: Path | None, sha256: str | None, as_json: bool) -> None:
    """Verify a model on this disk again: that of a job, a model folder, or a GGUF from anywhere.

    Nothing is changed, and the daemon is not needed. A level that has nothing to compare with is not run, and that is
    said. Exit code 10 when something is wrong.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise click.UsageError("--sha256 wants 64 hexadecimal digits")
    path = expanded(what)
    if not path.exists() and (path.suffix or len(path.parts) > 1):
        raise click.UsageError(f"there is no {what}")
    if not path.exists():
        path = _model_of(what)

    def say(level: Level) -> None:
        if not as_json:
            click.echo(cleaned(level.line))

    loaded = settings.load()
    cache = loaded.paths.state / "base"
    report = scrub.again(path.resolve(), base=base, sha256=sha256, cache=cache, hub=loaded.hub, say=say)
    if as_json:
        shown = {"path": str(path), "passed": report.passed, "sample": report.sample}
        emit_json({"schema": "homeport.verify/1", **cleaned(shown | {"levels": [asdict(v) for v in report.levels]})})
    else:
        _conclude(path, report)
    if not report.passed:
        raise SystemExit(Exit.NOT_VERIFIED)


def _model_of(ref: str) -> Path:
    view = read(lambda source: source.job(ref)).value["job"]
    if not view["model_dir"]:
        raise Refused(
            f"job {view['id']} is {view['state']}: no verified model of it is here", hint=f"jobctl show {ref}"
        )
    return Path(view["model_dir"])


def _conclude(path: Path, report: Report) -> None:
    for line in size_lines(report.levels):
        click.echo(cleaned(f"Size: {line}"))
    for warning in report.warnings:
        click.echo(cleaned(f"Note: {warning}"))
    if report.sample:
        click.echo(cleaned(f"It answers: {report.sample}"))
    missing = [level.name[:2] for level in report.levels if not level.ran]
    beside = f"; not run: {', '.join(missing)}" if missing else ""
    click.echo(f"{path}: {'nothing is wrong' if report.passed else 'NOT verified'}{beside}")
