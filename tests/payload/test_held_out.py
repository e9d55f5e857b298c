"""Is the model better on rows that it never saw: what is scored, what is said of it, and what ends the stage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from payload_box import Box, sft_rows, warm, write_rows

from remote_payload.contract import AdapterSource, Exit, Phase, Stage, StagePlan, Subject
from remote_payload.intervals import gain
from remote_payload.manifest import scores

Fork = Callable[..., Box]

HELD_OUT = 16
CHOICES = ["rose", "fell"]

# Prints each row's NLL as the plain arithmetic gives it: all logits, one softmax, and the word that wins.
PLAIN = """
import json, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from remote_payload.layout import Layout
from remote_payload.likelihood import ask
from remote_payload.rows import read_sft
from remote_payload.tokenizer import load_tokenizer
from pathlib import Path
layout = Layout(Path().resolve())
job = layout.read_job()
questions = ask(load_tokenizer(layout), read_sft(layout, job.eval_data).rows, job)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(layout.model), "run/sft/adapter").eval()
found = []
for question in questions:
    ids = torch.tensor([question.sample.ids])
    labels = torch.tensor([question.sample.labels])
    logits = model(input_ids=ids).logits
    nll = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum", ignore_index=-100)
    won = [bool(logits[0, p.at - 1, p.expected] > logits[0, p.at - 1, p.other]) for p in question.partings]
    found.append([float(nll), int((labels[0, 1:] != -100).sum()), all(won) if won else None])
print("found", json.dumps(found))
"""


def held_out_rows() -> list[dict[str, Any]]:
    """Rows like those trained on; every other one ends in a direction."""
    rows = sft_rows(24 + HELD_OUT)[24:]
    for i, row in enumerate(rows):
        row["messages"][-1]["content"] = f"It cost {124 + i % 40} units{[' and rose', ' and fell', '', ''][i % 4]}."
    return rows


@pytest.fixture
def fork(trained: Box, tmp_path: Path) -> Iterator[Fork]:
    """Makes a copy of the trained box with held-out rows; `changes` are of the job."""
    made: list[Box] = []

    def make(**changes: Any) -> Box:
        root = tmp_path / "box"
        shutil.copytree(trained.layout.root, root, symlinks=True)
        box = dataclasses.replace(trained, layout=dataclasses.replace(trained.layout, root=root))
        box.set(eval_data=write_rows(root, held_out_rows()), choices=CHOICES, **changes)
        made.append(box)
        return box

    yield make
    for box in made:
        box.kill_chain()


def report_of(box: Box, stage: Stage) -> dict[str, Any]:
    return dict(json.loads(box.layout.held_out(stage).read_text()))


def test_both_stages_are_scored(fork: Fork) -> None:
    """SFT is better than the base model beyond doubt and no better than an equal one that the job names, DPO is held
    against SFT, and each row is scored once a model."""
    box = fork(compare_to=AdapterSource("adapters/earlier", "0" * 64, "earlier"))
    shutil.copytree(box.layout.adapter(Stage.SFT), box.layout.root / "adapters/earlier")

    for stage in (Stage.SFT, Stage.DPO):
        done = box.call("held_out", "--stage", stage)
        assert done.returncode == Exit.OK, done.stderr

    new, base, compared = report_of(box, Stage.SFT)["scores"]
    assert (new["subject"], base["subject"], compared["subject"]) == ("new", "base", "compared")
    assert new["rows"] == base["rows"] == HELD_OUT
    assert (compared["nll"], compared["nll_gain"]["mean"], compared["right_gain"]["mean"]) == (new["nll"], 0, 0)
    assert 0 < base["nll_gain"]["low"] < base["nll"] - new["nll"] < base["nll_gain"]["high"]
    assert new["choice_rows"] == HELD_OUT // 2
    assert json.loads(box.layout.result(Stage.SFT).read_text())["metrics"]["held_out_nll_new"] == new["nll"]
    assert report_of(box, Stage.DPO)["rows"].keys() == {"base", "compare_to", "SFT", "DPO"}
    assert report_of(box, Stage.DPO)["rows"]["SFT"] == report_of(box, Stage.SFT)["rows"]["SFT"]
    kept = [score for stage in (Stage.SFT, Stage.DPO) for score in report_of(box, stage)["scores"]]
    assert [(line["subject"], line["nll"]) for line in box.events("eval")] == [(s["subject"], s["nll"]) for s in kept]
    verdicts = [gate for gate in box.events("gate") if gate["name"] in ("held_out_nll", "sft_perplexity")]
    assert [(gate["stage"], gate["name"], gate["ok"]) for gate in verdicts] == [
        ("SFT", "held_out_nll", True),
        ("DPO", "sft_perplexity", True),
    ]


def test_rows_are_scored_as_plain_arithmetic_scores_them(fork: Fork) -> None:
    """Logits only where they are read change nothing: NLL and chosen word are those of a whole forward."""
    box = fork()
    done = box.call("held_out", "--stage", "SFT")
    assert done.returncode == Exit.OK, done.stderr

    printed = box.evaluate(PLAIN).splitlines()[-1]

    expected = json.loads(printed.removeprefix("found "))
    ours = report_of(box, Stage.SFT)["rows"]["SFT"]
    assert [row[1:] for row in ours] == [row[1:] for row in expected]
    assert [row[0] for row in ours] == pytest.approx([row[0] for row in expected], abs=1e-3)
    assert [row[2] is not None for row in ours] == [True, True, False, False] * (HELD_OUT // 4)


@pytest.mark.parametrize(
    ("stage", "limits", "code"),
    [("SFT", {"held_out_nll": 50.0}, Exit.NOT_LEARNING), ("DPO", {"sft_perplexity": -0.99}, Exit.DPO_GATE)],
)
def test_a_gate_ends_the_stage(fork: Fork, stage: str, limits: dict[str, float], code: Exit) -> None:
    """A model that is not better by what the job demands ends its stage with the gate's code and both numbers."""
    box = fork(gates=limits)

    done = box.call("held_out", "--stage", stage)

    assert done.returncode == code
    (name, limit), (verdict, *_) = *limits.items(), [gate for gate in box.events("gate") if not gate["ok"]]
    assert (verdict["name"], verdict["limit"]) == (name, limit)
    assert f"gate {name}" in box.events("error")[-1]["msg"]


def test_the_chain_asks_after_training(fork: Fork) -> None:
    """A stage with held-out rows is done only once they were scored: done.json names the scores and has the figures."""
    box = fork(stages=[StagePlan(Stage.SFT, "nonce-2")])

    box.start("nonce-2", HOMEPORT_PYTHON=warm(box))

    assert box.ended() == Phase.DONE
    done = box.done("nonce-2")
    assert "run/sft/held_out/scores.json" in [output.path for output in done.outputs]
    assert done.metrics["held_out_nll_new"] < done.metrics["held_out_nll_base"]
    (ours, base) = scores(box.layout, box.job)
    assert (ours.subject, ours.nll, base.nll_gain is not None) == (Subject.NEW, done.metrics["held_out_nll_new"], True)


def test_an_interval_knows_noise_from_gain() -> None:
    """Differences that cancel out leave an interval around nought; equal ones leave no doubt; both are repeatable."""
    noise = [(-1.0) ** i * (1 + i % 7) for i in range(400)]

    doubtful, sure = gain(noise, [3.0] * 400), gain([0.3] * 400, [3.0] * 400)

    assert doubtful.low < 0 < doubtful.high
    assert (sure.mean, sure.low, sure.high) == pytest.approx((0.1, 0.1, 0.1))
    assert gain(noise, [3.0] * 400) == doubtful
