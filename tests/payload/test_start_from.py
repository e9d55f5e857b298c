"""A job that goes on with an earlier adapter."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable

from payload_box import Box

from remote_payload.contract import AdapterSource, Exit, Lora, Stage, StageTraining

MakeBox = Callable[..., Box]
STANDING_STILL = StageTraining(lr=1e-12, max_steps=1)

# Makes an adapter whose every weight is random, in the shape that the tests' jobs train.
EARLIER = """
import json, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(1)
lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(AutoModelForCausalLM.from_pretrained("model"), lora)
for name, weight in model.named_parameters():
    if "lora_" in name:
        torch.nn.init.normal_(weight, std=0.02)
folder = Path("adapters/earlier")
model.save_pretrained(folder)
config = folder / "adapter_config.json"
config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "tiny"}))
"""
# Prints the largest difference between the weights of the adapter that was trained and the earlier one.
FURTHEST = """
from safetensors.torch import load_file
ours, theirs = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("run/sft/adapter", "adapters/earlier"))
print(max(float((ours[name] - theirs[name]).abs().max()) for name in theirs))
"""


def bring(box: Box) -> None:
    """An adapter as the workstation uploads it, and the job that names it."""
    box.evaluate(EARLIER)
    weights = box.layout.root / "adapters/earlier/adapter_model.safetensors"
    box.set(start_from=AdapterSource("adapters/earlier", hashlib.sha256(weights.read_bytes()).hexdigest(), "j00000"))


def test_training_goes_on_with_the_earlier_adapter(make_box: MakeBox) -> None:
    """SFT starts from the weights of the adapter that the job names: where it hardly moves, it ends with them."""
    box = make_box(sft=STANDING_STILL)
    bring(box)

    box.prepare()
    box.train(Stage.SFT)

    assert float(box.evaluate(FURTHEST)) < 1e-9


def test_an_adapter_of_another_shape_is_refused(make_box: MakeBox) -> None:
    """prepare ends before anything is trained, and says what to write in the job file."""
    box = make_box(lora=Lora(r=8, alpha=8, dropout=0.05))
    bring(box)

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_CONFIG
    assert "start_from: j00000: the job's lora is r: 8" in "".join(box.layout.read_prepared().problems)


def test_an_adapter_of_another_model_is_refused(make_box: MakeBox) -> None:
    """An adapter for another base model changes layers that this one lacks, whatever its settings claim."""
    box = make_box()
    bring(box)
    config = box.layout.root / "adapters/earlier/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "owner/other"}))

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_CONFIG
    assert "it was trained on owner/other, the job's model is tiny" in "".join(box.layout.read_prepared().problems)


def test_dpo_goes_on_with_what_comes_before_it(make_box: MakeBox) -> None:
    """DPO goes on with the SFT of its own job, without one with the earlier adapter, without either afresh."""
    box = make_box(start_from=AdapterSource("adapters/earlier", "0" * 64, "j00000"))
    both, alone = box.job, dataclasses.replace(box.job, sft=None)

    assert box.layout.parent(both, Stage.DPO) == box.layout.adapter(Stage.SFT)
    assert box.layout.parent(alone, Stage.DPO) == box.layout.root / "adapters/earlier"
    assert box.layout.parent(dataclasses.replace(alone, start_from=None), Stage.DPO) is None
