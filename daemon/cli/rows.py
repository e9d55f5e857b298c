"""`data-check`: what is in data files, before anything is rented."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from daemon.cli.exits import Exit
from daemon.cli.screens import rows as screen
from daemon.cli.submit import text_of
from daemon.cli.terminal import cleaned, emit_json, examples, look, report
from daemon.domain.spec import parse
from daemon.errors import SpecError
from daemon.rows import canonical
from daemon.rows.report import report as report_on
from daemon.rows.shapes import Kind

SPEC_SUFFIXES = (".yaml", ".yml")


@click.command(
    name="data-check",
    epilog=examples(
        "jobctl data-check job.yaml", "jobctl data-check data/sft.jsonl data/dpo.parquet --eval data/eval.csv"
    ),
)
@click.argument("files", metavar="FILE...|SPEC", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["sft", "dpo"]), help="What the rows are for; else their columns tell.")
@click.option("--eval", "held_out", multiple=True, type=click.Path(path_type=Path), help="A file of evaluation rows.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def data_check(files: tuple[Path, ...], kind: Kind | None, held_out: tuple[Path, ...], as_json: bool) -> None:
    """Read every row of each FILE, or of the data that a job file names: how it is understood, what is wrong with it,
    lengths, repetitions, what the files have in common, and a row as it will be trained."""
    if files[0].suffix in SPEC_SUFFIXES:
        if len(files) > 1 or held_out or kind:
            raise click.UsageError("a job file names its data itself; it stands alone")
        named = list(_of_spec(files[0]))
    else:
        named = [(file, kind or canonical.kind_of(file)) for file in files]
        named += [(file, "eval") for file in held_out]
    read = [canonical.read(file, each) for file, each in named]
    found = cleaned(report_on(read))
    if as_json:
        emit_json(found)
    else:
        click.echo(screen.screen(found, look()))
    if problems := [problem for file in read for problem in file.problems]:
        report(SpecError(problems, hint=f"mend these lines, then: jobctl data-check {' '.join(map(str, files))}"))
    if not found["sound"]:
        raise SystemExit(Exit.USAGE)


def _of_spec(file: Path) -> Iterator[tuple[Path, Kind]]:
    """The data sets of a job file. Raises SpecError for whatever else is wrong in it, too."""
    spec = parse(text_of(file), source=str(file), base=file.resolve().parent)
    kinds: tuple[Kind, ...] = ("sft", "dpo", "eval")
    for kind in kinds:
        if kind in spec.data:
            yield file.resolve().parent / Path(spec.data[kind]).expanduser(), kind
