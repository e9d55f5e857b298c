"""The fast way trains the same model as the plain one, and knows what a card has room for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from payload_box import Box
from warm_client import completed

from remote_payload import recompute
from remote_payload.contract import Lora, Stage, StagePlan
from remote_payload.recompute import Room

MakeBox = Callable[..., Box]

QWEN_7B = SimpleNamespace(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
)
RANK_64 = 161_480_704  # trained weights


def test_both_ways_train_the_same(make_box: MakeBox) -> None:
    """In fp32 every step's loss is equal to 1e-5 and every adapter tensor's gradient points the same way, in SFT and
    in DPO; and a step's sequences are cut into few rows, each within the limit or one sequence."""
    box = make_box()

    printed = box.evaluate(Path(__file__).with_name("speed_side.py").read_text())
    *stages, bins = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("found ")]

    assert [stage for stage, *_ in stages] == ["SFT", "DPO"]
    for _, apart, cosine, compared in stages:
        assert apart <= 1e-5
        assert cosine >= 0.9999
        assert compared == 3 * 2 * 7 * 2
    assert bins == [[5], [0], [1, 3], [2, 4]]


def test_a_plain_model_beside_a_fast_one(make_box: MakeBox) -> None:
    """The rotary kernel reads one row and stands in the module of the model's kind: a padded batch that comes there
    later in the process is computed as before, however many models were made fast."""
    printed = make_box().evaluate(Path(__file__).with_name("kernels_side.py").read_text())
    (found,) = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("found ")]

    assert found == {"same": True, "kept": True, "nested": False}


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.DPO])
def test_plain_is_what_trl_trains(make_box: MakeBox, stage: Stage) -> None:
    """Losses of the plain way are those of TRL's trainer on the same rows and seed, from a fresh adapter."""
    only = {"stages": [StagePlan(stage, "nonce")], "speed": "plain", "lora": Lora(r=4, alpha=8)}
    if stage is Stage.SFT:
        box = make_box(rows=[{"text": f"Day {i}: {i % 7} units" + " and up" * (i % 5)} for i in range(24)], **only)
    else:
        pairs = [{"prompt": f"Day {i}?\n", "chosen": "Up." * (1 + i % 3), "rejected": "Down."} for i in range(16)]
        box = make_box(rows=[], sft=None, sft_data=None, pairs=pairs, **only)
    box.prepare()
    box.train(stage)

    theirs = completed(box.begin("tests.payload.trl_side", str(box.layout.root), stage.lower()), box.layout.root)

    assert theirs.returncode == 0, theirs.stderr
    losses = json.loads(theirs.stdout.splitlines()[-1])
    assert len(losses) == box.layout.read_prepared().steps[stage] > 4
    assert [step["loss"] for step in box.events("step")] == pytest.approx(losses, abs=1e-4)


# What a forward may take after none, one and several halvings: rows of up to 60 tokens, two in a forward.
ROOMS = """
import json
from dataclasses import astuple
from pathlib import Path
from transformers import AutoModelForCausalLM
from remote_payload import speed, training
from remote_payload.layout import Layout
job = Layout(Path()).read_job()
for remembered in (None, 60, 30):
    model = training.attach_adapter(AutoModelForCausalLM.from_pretrained("model"), job, None)
    print("found " + json.dumps(astuple(speed.quicken(model, job, 60, remembered).room)))
"""


def test_less_than_the_longest_row_is_recomputed(make_box: MakeBox) -> None:
    """Half the tokens a forward each time that memory ran out; a row that is longer still goes in whole, and then its
    activations are recomputed."""
    printed = make_box().evaluate(ROOMS)

    rooms = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("found ")]
    assert rooms == [[120, False], [60, False], [30, True]]


@pytest.mark.parametrize(
    ("gib", "expected"),
    [
        (62.0, Room(10240, recompute=False)),
        (30.0, Room(5589, recompute=False)),
        (16.0, Room(10240, recompute=True)),
        (7.0, Room(1024, recompute=True)),
    ],
)
def test_activations_are_kept_where_they_fit(gib: float, expected: Room) -> None:
    """A 7B keeps its activations when a forward worth its while fits the free memory, and recomputes them otherwise."""
    found = recompute.room(QWEN_7B, int(gib * 2**30), RANK_64, longest=1024)

    assert found.recompute is expected.recompute
    assert found.tokens == pytest.approx(expected.tokens, rel=0.02)
