"""The example: rows are exact in number, right by the figures, repeatable, and its two job files can be read."""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from daemon.domain.estimate import estimate
from daemon.domain.spec import parse
from daemon.rows import canonical
from daemon.rows.findings import findings

EXAMPLE = Path(__file__).parents[2] / "docs/examples/forex"
FIGURES = re.compile(r"(\w{3}) for 1 EUR, from (\d{4}-\d\d-\d\d):\n([\d. ]+)\n")


@cache
def builder() -> ModuleType:
    import importlib.util

    located = importlib.util.spec_from_file_location("forex_build", EXAMPLE / "build.py")
    module = importlib.util.module_from_spec(located)
    sys.modules["forex_build"] = module  # dataclasses look their module up
    located.loader.exec_module(module)
    return module


@cache
def full_set() -> dict[str, list[dict]]:
    return builder().build(15_300, 2_550, 400)


def moved(row: dict) -> tuple[str, Decimal]:
    """Direction and percent, worked out anew from the figures in the prompt."""
    figures = [Decimal(text) for text in FIGURES.search(row["prompt"][0]["content"])[3].split()]
    percent = (figures[-1] - figures[0]) * 100 / figures[0]
    return ("rose" if percent > 0 else "fell"), percent


def said(turns: list[dict]) -> str:
    return re.search(r"The euro (rose|fell) by [\d.]+ %\.$", turns[0]["content"])[1]


def first_day(row: dict) -> str:
    return FIGURES.search(row["prompt"][0]["content"])[2]


def test_the_counts_are_exact():
    """The reference job's 15300 + 2550, and no row twice."""
    files = full_set()

    assert {name: len(rows) for name, rows in files.items()} == {
        "sft.jsonl": 15300,
        "dpo.jsonl": 2550,
        "eval.jsonl": 400,
    }
    shown = [FIGURES.search(row["prompt"][0]["content"]).group(1, 2) for rows in files.values() for row in rows]
    assert len(set(shown)) == len(shown)


def test_every_answer_is_right_by_its_figures():
    """Direction and percent of each answer agree with the rates that the prompt shows."""
    files = full_set()
    for row in files["sft.jsonl"] + files["eval.jsonl"]:
        verb, percent = moved(row)

        assert said(row["completion"]) == verb
        assert f"by {abs(percent):.2f} %" in row["completion"][0]["content"]


def test_chosen_is_right_and_rejected_is_wrong():
    """Each pair differs in direction, the chosen one's being the true one."""
    for row in full_set()["dpo.jsonl"]:
        verb, _ = moved(row)

        assert said(row["chosen"]) == verb
        assert said(row["rejected"]) != verb


def test_evaluation_is_later_than_all_training():
    """No training row begins in the year that evaluation is taken from."""
    files = full_set()

    training = max(first_day(row) for name in ("sft.jsonl", "dpo.jsonl") for row in files[name])

    assert training < min(first_day(row) for row in files["eval.jsonl"])


def test_both_directions_occur():
    """A model that always says the same must not look good."""
    share = sum(said(row["completion"]) == "rose" for row in full_set()["sft.jsonl"]) / 15_300

    assert 0.4 < share < 0.6


def test_more_than_the_rates_give_is_refused():
    """Rows are never repeated to reach a count."""
    with pytest.raises(SystemExit, match="the rates give"):
        builder().build(1_000_000, 0, 0)


def example(folder: Path, *arguments: str) -> Path:
    """The reference job's file with its data, made by the command that it names."""
    folder.mkdir(exist_ok=True)
    (folder / "reference.yaml").write_bytes((EXAMPLE / "reference.yaml").read_bytes())
    command = [sys.executable, str(EXAMPLE / "build.py"), "--out", str(folder / "data"), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return folder


def test_the_command_gives_the_same_bytes_each_time(tmp_path):
    """Two runs of the command, byte for byte."""
    size = ("--sft", "50", "--dpo", "20", "--eval", "5")

    first, second = (example(tmp_path / name, *size) for name in ("a", "b"))

    for name in ("sft.jsonl", "dpo.jsonl", "eval.jsonl"):
        assert (first / "data" / name).read_bytes() == (second / "data" / name).read_bytes()


def test_the_reference_job_can_be_read(tmp_path):
    """Its data passes the check with nothing to warn of, and 15300 rows at batch 32 are 479 steps."""
    folder = example(tmp_path, "--think")
    spec = parse((folder / "reference.yaml").read_text(), source="reference.yaml", base=folder)

    reports = {kind: canonical.read(folder / spec.data[kind], kind) for kind in ("sft", "dpo", "eval")}

    assert [r.problems for r in reports.values()] == [(), (), ()]
    assert findings(list(reports.values())) == []
    assert all(len(r.survey.dates) == r.survey.rows for r in reports.values())
    assert (spec.integration.sft_rows, spec.integration.dpo_rows) == (
        reports["sft"].survey.rows,
        reports["dpo"].survey.rows,
    )
    assert estimate(spec, {kind: r.survey.rows for kind, r in reports.items()}).steps == {"sft": 479, "dpo": 80}
    assert "<think>" in (folder / "data/sft.jsonl").read_text()


def test_the_demo_job_can_be_read(tmp_path):
    """With its two words filled in; the counts in the file are those of the command in it."""
    text = (EXAMPLE / "demo.yaml").read_text()
    command = re.search(r"build\.py (.+) --out DIR", text)[1].split()
    folder = example(tmp_path, *command) / "data"
    text = text.replace("MODEL_FOLDER", str(folder)).replace("VERIFY_LEVEL", "full")

    spec = parse(text, source="demo.yaml", base=folder)

    assert spec.integration.sft_rows == canonical.read(folder / spec.sft.data, "sft").survey.rows
    assert spec.integration.dpo_rows == canonical.read(folder / spec.dpo.data, "dpo").survey.rows
