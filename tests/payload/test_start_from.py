"""A job that goes on with an earlier adapter."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable

from payload_box import Box

from remote_payload.contract import AdapterSource, Exit, Lora, Stage, StageTraining

MakeBox = Callable[..., Box]
STANDING_STILL = StageTraining(lr=1e-12, max_steps=1)

# Prints the largest difference between the weights of two adapters.
FURTHEST = """
from safetensors.torch import load_file
ours, theirs = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("run/sft/adapter", "adapters/earlier"))
print(max(float((ours[name] - theirs[name]).abs().max()) for name in theirs))
"""


def bring(box: Box, trained: Box) -> None:
    """The SFT adapter of an earlier job as the workstation uploads it."""
    shutil.copytree(trained.layout.adapter(Stage.SFT), box.layout.root / "adapters/earlier")
    box.set(start_from=AdapterSource("adapters/earlier", trained.adapter_hash(Stage.SFT), "j00000"))


def test_training_goes_on_with_the_earlier_adapter(make_box: MakeBox, trained: Box) -> None:
    """SFT starts from the weights of the adapter that the job names: where it hardly moves, it ends with them."""
    box = make_box(sft=STANDING_STILL)
    bring(box, trained)

    box.prepare()
    box.train(Stage.SFT)

    assert float(box.evaluate(FURTHEST)) < 1e-9


def test_an_adapter_of_another_shape_is_refused(make_box: MakeBox, trained: Box) -> None:
    """prepare ends before anything is trained, and says what to write in the job file."""
    box = make_box(lora=Lora(r=8, alpha=8, dropout=0.05))
    bring(box, trained)

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_CONFIG
    assert "start_from: j00000: the job's lora is r: 8" in "".join(box.layout.read_prepared().problems)


def test_an_adapter_of_another_model_is_refused(make_box: MakeBox, trained: Box) -> None:
    """An adapter for another base model changes layers that this one lacks, whatever its settings claim."""
    box = make_box()
    bring(box, trained)
    config = box.layout.root / "adapters/earlier/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "owner/other"}))

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_CONFIG
    assert "it was trained on owner/other, the job's model is tiny" in "".join(box.layout.read_prepared().problems)


def test_dpo_goes_on_with_what_comes_before_it(make_box: MakeBox, trained: Box) -> None:
    """DPO goes on with the SFT of its own job, without one with the earlier adapter, without either afresh."""
    box = make_box()
    bring(box, trained)
    both, alone = box.job, dataclasses.replace(box.job, sft=None)

    assert box.layout.parent(both, Stage.DPO) == box.layout.adapter(Stage.SFT)
    assert box.layout.parent(alone, Stage.DPO) == box.layout.root / "adapters/earlier"
    assert box.layout.parent(dataclasses.replace(alone, start_from=None), Stage.DPO) is None
