"""A real model, SmolLM2-135M, on the ECB's rates: the fast way, the plain way and TRL itself train the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from payload_box import REPOSITORY, Box, build_box

from daemon.sandbox import models
from remote_payload.contract import Lora, Stage

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]
EXAMPLE = REPOSITORY / "docs/examples/forex/build.py"
ROWS = 24


@pytest.fixture(scope="module")
def box(box_python: Path, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box with SmolLM2 and rows that are texts: what its chat template would add is no matter here."""
    folder = tmp_path_factory.mktemp("smollm2")
    models.build_smollm2(folder / "model", box_python)
    rates = ecb_rows()
    rows, pairs = ([as_texts(row) for row in rates[kind]] for kind in ("sft.jsonl", "dpo.jsonl"))
    settings: dict[str, Any] = {"speed": "plain", "lora": Lora(r=8, alpha=16), "batch_size": 6, "max_length": 512}
    box = build_box(folder / "box", box_python, warm, folder / "model", rows, pairs, **settings)
    for stage in ("sft", "dpo"):
        training = getattr(box.job, stage)
        box.set(**{stage: dataclasses.replace(training, epochs=1, lr=2e-4 if stage == "sft" else 1e-5)})
    run(box, "-m", "remote_payload.prepare")
    return box


def run(box: Box, *command: str | Path) -> str:
    """What plain python prints; the warm one is for what takes seconds."""
    environment = box.environment(HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [box.python, "-W", "ignore", *command], cwd=box.layout.root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ecb_rows() -> dict[str, list[dict[str, Any]]]:
    located = importlib.util.spec_from_file_location("forex_build", EXAMPLE)
    assert located and located.loader
    module = importlib.util.module_from_spec(located)
    sys.modules["forex_build"] = module  # dataclasses look their module up
    located.loader.exec_module(module)
    made: dict[str, list[dict[str, Any]]] = module.build(ROWS, ROWS, 1)
    return made


def as_texts(row: dict[str, Any]) -> dict[str, str]:
    """Every list of one message as its text, answers set apart from what is before them."""
    texts = {key: value[0]["content"] for key, value in row.items() if isinstance(value, list)}
    return {key: text + "\n" if key == "prompt" else text for key, text in texts.items()}


def test_fast_and_plain_train_the_same(box: Box) -> None:
    """In fp32 no step's loss differs by 1e-5, and the gradients of every adapter tensor have a cosine of 0.9999."""
    printed = run(box, Path(__file__).with_name("real_side.py"))

    found = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("found ")]
    assert [stage for stage, *_ in found] == ["SFT", "DPO"]
    for _, apart, cosine, compared in found:
        assert apart <= 1e-5
        assert cosine >= 0.9999
        assert compared == 3 * 30 * 7 * 2  # steps, layers, products of a layer, halves of an adapter


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.DPO])
def test_plain_is_what_trl_trains(box: Box, stage: Stage) -> None:
    """Losses of the plain way equal those of TRL's trainer, started by plain python, within 1e-5 at every step."""
    if stage is Stage.DPO:  # as TRL's, from a fresh adapter
        box.set(stages=[plan for plan in box.job.stages if plan.stage is Stage.DPO], sft=None)
    run(box, "-m", f"remote_payload.{stage.lower()}")

    theirs = run(box, Path(__file__).with_name("trl_side.py"), str(box.layout.root), stage.lower())

    losses = json.loads(theirs.splitlines()[-1])
    ours = [step["loss"] for step in box.events("step") if step["stage"] == stage]
    assert len(ours) == ROWS // box.job.batch_size
    assert ours == pytest.approx(losses, rel=0, abs=1e-5)
