"""`jobctl data-check`: screens, JSON and exit codes, over files and over a job file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from daemon.cli.jobctl import jobctl

NANO = Path(__file__).parents[2] / "daemon/sandbox/models/nano"
SFT = [
    {
        "prompt": [{"role": "user", "content": f"Which way did the krone go on day {i}?"}],
        "completion": [{"role": "assistant", "content": "Up."}],
    }
    for i in range(8)
]
DPO = [{"instruction": f"{i}!", "chosen": "Up.", "rejected": "No."} for i in range(3)]
SPEC = """\
version: 1
name: a
model: {model}
sft: {{data: sft.jsonl, max_steps: 1}}
eval: {{data: eval.jsonl}}
batch_size: 4
"""


def check(*arguments: object) -> Result:
    return CliRunner().invoke(jobctl, ["data-check", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    files: dict[str, list[Any]] = {"sft": SFT, "dpo": DPO, "eval": SFT[2:4], "bad": [SFT[0], {"prompt": 1}]}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "job.yaml").write_text(SPEC.format(model=NANO))
    return tmp_path


def test_files_are_told_one_by_one_and_together(folder):
    """What each is for and how it is read, what they share; a warning is not a failure."""
    result = check(folder / "sft.jsonl", folder / "dpo.jsonl", "--eval", folder / "eval.jsonl")

    assert result.exit_code == 0
    told = "".join(result.stdout.split())  # the folder of this test is long, so lines break where they like
    for part in (
        "sft.jsonl 8 SFT rows Read as prompt and completion Characters",
        "dpo.jsonl 3 DPO rows Read as Alpaca pairs, written as prompt, chosen, rejected",
        "Tokens not counted: give --model FOLDER",
        "Answers chosen 3, rejected 3 characters on average",
        f"2 rows of {folder / 'eval.jsonl'} ask what {folder / 'sft.jsonl'} asks",
        f"! {folder / 'eval.jsonl'}:1: 2 of 2 evaluation rows ask what rows of {folder / 'sft.jsonl'} ask too",
    ):
        assert "".join(part.split()) in told
    assert result.stdout.endswith("Sound, 1 warning\n")


def test_a_job_file_is_checked_with_all_it_says(folder):
    """Its data, its model's tokenizer and template, and the rows that its steps never come to."""
    result = check(folder / "job.yaml")

    assert result.exit_code == 0
    told = "".join(result.stdout.split())  # the folder of this test is long, so lines break where they like
    for part in (
        "; 0 rows over max_length 64",
        "A row as the model gets it in training <|begin|><|im_start|>user Which way did",
        "! 1 SFT steps of 4 rows reach 4 of 8: 4 rows are never trained Try: leave max_steps out",
    ):
        assert "".join(part.split()) in told


def test_json_holds_the_same(folder):
    """One object, its schema named; standard output holds nothing else."""
    result = check(folder / "sft.jsonl", "--model", NANO, "--max-length", 16, "--json")

    found = json.loads(result.stdout)
    (file,) = found["files"]
    assert (found["schema"], found["sound"], found["max_length"]) == ("homeport.data/2", False, 16)
    assert (file["kind"], file["rows"], file["cut"], len(file["sha256"])) == ("SFT", 8, 8, 64)
    assert [finding["level"] for finding in found["findings"]] == ["REFUSED"]
    assert result.exit_code == 2


def test_a_bad_line_is_named_and_leads_on(folder):
    """File and line on standard error, the command to type, exit 2; the sound rows are still told."""
    result = check(folder / "bad.jsonl")

    assert result.exit_code == 2
    assert f"Error: {folder / 'bad.jsonl'}:2: completion is missing" in result.stderr
    assert f"Try:   mend these lines, then: jobctl data-check {folder / 'bad.jsonl'}" in result.stderr
    assert "1 SFT rows, 1 bad" in result.stdout


@pytest.mark.parametrize("more", [["sft.jsonl"], ["--kind", "sft"], ["--eval", "eval.jsonl"], ["--max-length", "64"]])
def test_a_job_file_stands_alone(folder, more):
    """Nothing beside it: a second answer to what it already says would be a contradiction."""
    assert check(folder / "job.yaml", *more).exit_code == 2


@pytest.mark.parametrize("when", ["1e999", "1e300", "9" * 400, "1764460800000000000"])
def test_a_number_that_is_no_time_dates_nothing(folder, when):
    """Nanoseconds, too, would be of the year 55914."""
    (folder / "dated.jsonl").write_text(f'{{"text": "a", "time": {when}}}\n')

    result = check(folder / "dated.jsonl")

    assert result.exit_code == 0 and "Dated" not in result.stdout
