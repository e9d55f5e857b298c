"""`data-check`: what is in data files, before anything is rented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from daemon import settings
from daemon.cli.exits import Exit
from daemon.cli.path import text_of
from daemon.cli.screens import rows as screen
from daemon.cli.terminal import cleaned, emit_json, examples, look, report
from daemon.domain.coverage import coverage
from daemon.domain.estimate import steps_of
from daemon.domain.spec import JobSpec, parse
from daemon.errors import SpecError
from daemon.rows import canonical, tokenizer
from daemon.rows.canonical import RowFile
from daemon.rows.findings import Finding, Level
from daemon.rows.report import report as report_on
from daemon.rows.shapes import Kind
from daemon.rows.tokens import Counter

SPEC_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Asked:
    """What is to be checked, as the arguments or the job file say."""

    files: Sequence[tuple[Path, Kind]]
    counter: Counter | None
    uncounted: str  # why there is no counter
    max_length: int | None
    spec: JobSpec | None = None


@click.command(
    name="data-check",
    epilog=examples(
        "jobctl data-check job.yaml", "jobctl data-check data/sft.jsonl data/dpo.parquet --eval data/eval.csv"
    ),
)
@click.argument("files", metavar="FILE...|SPEC", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["sft", "dpo"]), help="What the rows are for; else their columns tell.")
@click.option("--eval", "held_out", multiple=True, type=click.Path(path_type=Path), help="A file of evaluation rows.")
@click.option("--model", type=click.Path(path_type=Path), help="A folder with tokenizer.json: tokens are counted.")
@click.option("--max-length", type=click.IntRange(min=16), help="Tokens of a row; else as the box will derive it.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def data_check(
    files: tuple[Path, ...],
    kind: Kind | None,
    held_out: tuple[Path, ...],
    model: Path | None,
    max_length: int | None,
    as_json: bool,
) -> None:
    """Read every row of each FILE, or of the data that a job file names: how it is understood, what is wrong with it,
    lengths, repetitions, what the files have in common, and a row as it will be trained."""
    if files[0].suffix in SPEC_SUFFIXES:
        if len(files) > 1 or held_out or kind or model or max_length:
            raise click.UsageError("a job file says all of this itself; it stands alone")
        asked = _by_spec(files[0])
    else:
        named = [(file, kind or canonical.kind_of(file)) for file in files] + [(file, "eval") for file in held_out]
        asked = Asked(named, Counter(model) if model else None, "" if model else "give --model FOLDER", max_length)
    counter = asked.counter
    read = [canonical.read(file, each, count=counter.length if counter else None) for file, each in asked.files]
    trained = [file.tokens or () for file in read if file.kind != "eval"]
    max_length = (asked.max_length or counter.fitting(trained)) if counter else None
    example = next((file.survey.example for file in read if file.survey.example), None)
    rendered = counter.rendered(example) if counter and example else None
    found = cleaned(report_on(read, max_length, _unreached(asked.spec, read), rendered))
    if as_json:
        emit_json(found)
    else:
        click.echo(screen.screen(found, look(), asked.uncounted))
    if problems := [problem for file in read for problem in file.problems]:
        report(SpecError(problems, hint=f"mend these lines, then: jobctl data-check {' '.join(map(str, files))}"))
    if not found["sound"]:
        raise SystemExit(Exit.USAGE)


def _by_spec(file: Path) -> Asked:
    """The data sets of a job file. Raises SpecError for whatever else is wrong in it, too."""
    text, folder = text_of(file), file.resolve().parent
    spec = parse(text, source=str(file), base=folder)
    kinds: tuple[Kind, ...] = ("sft", "dpo", "eval")
    named = [(folder / Path(spec.data[kind]).expanduser(), kind) for kind in kinds if kind in spec.data]
    place = tokenizer.folder_of(spec.model, folder, settings.load().paths.state / "base")
    if place is None:
        return Asked(named, None, f"no tokenizer.json of {spec.model} is here yet", spec.max_length, spec)
    try:
        counter = Counter(place, spec.reasoning)
    except SpecError as error:
        return Asked(named, None, error.hint or error.message, spec.max_length, spec)
    return Asked(named, counter, "", spec.max_length, spec)


def _unreached(spec: JobSpec | None, files: Sequence[RowFile]) -> list[Finding]:
    """Rows that the steps of the job file never come to."""
    if spec is None:
        return []
    rows: dict[str, int] = {file.kind: file.survey.rows for file in files}
    stages = {"SFT": spec.sft, "DPO": spec.dpo}
    steps = {name: steps_of(stage, rows[name.lower()], spec.batch_size) for name, stage in stages.items() if stage}
    counted = coverage(rows, {"steps": steps}, spec.batch_size)
    mend = "leave max_steps out and let epochs be 1 or more, if all of them should be"
    return [Finding(Level.WARNING, stage.warning, mend) for stage in counted if stage.warning]
