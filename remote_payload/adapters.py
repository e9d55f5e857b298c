"""An earlier adapter that a job goes on from: whether it is one that this job can continue.

Asked on the workstation before anything is rented, from adapter_config.json alone, and again on the box, where the
base model's weights are. Standard library only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from remote_payload.contract import Lora

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILES = (WEIGHTS, CONFIG)
PREFIX = "base_model.model."  # PEFT puts it before the module's own name
APART = ("embed", "lm_head")  # weights of two dimensions that `all-linear` leaves alone

# Keys of adapter_config.json and what they are for a LoRA that adds to the linear layers and does nothing else.
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
SETTINGS = {"r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout"}  # PEFT's name -> the job file's


def strangeness(config: Mapping[str, Any]) -> Iterator[str]:
    """What in the adapter is more than plain LoRA: only PEFT can merge it, and no job continues it."""
    for key, plain in PLAIN.items():
        if config.get(key, plain) not in (plain, None):
            yield f"{key} is {config[key]!r}"


def base_problems(config: Mapping[str, Any], model: str) -> Iterator[str]:
    """`model` is a hub id or a folder's name; the owner may differ, since a folder has none."""
    base = str(config.get("base_model_name_or_path") or "")
    if _own_name(base) != _own_name(model):
        yield f"it was trained on {base or 'an unnamed model'}, the job's model is {model}"


def lora_problems(config: Mapping[str, Any], lora: Lora) -> Iterator[str]:
    """An adapter is continued in the shape that it has, so the job must name that shape."""
    theirs = {ours: config.get(name) for name, ours in SETTINGS.items()}
    if any(theirs[name] != getattr(lora, name) for name in theirs):
        written = ", ".join(f"{name}: {value}" for name, value in theirs.items())
        yield f"the job's lora is r: {lora.r}, alpha: {lora.alpha}, dropout: {lora.dropout}; write lora: {{{written}}}"


def fit_problems(adapter: Path, model: Path) -> Iterator[str]:
    """Weights of the base model that the adapter does not change and should, or that it changes in another shape."""
    base: dict[str, tuple[int, ...]] = {}
    for file in model.glob("*.safetensors"):
        base |= shapes(file)
    linear = {
        name.removesuffix(".weight"): shape
        for name, shape in base.items()
        if len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in APART)
    }
    ours = shapes(adapter / WEIGHTS)
    adapted = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in ours}
    if missing := sorted(linear.keys() - adapted):
        yield f"it leaves {len(missing)} of {len(linear)} linear layers alone, first {missing[0]}; jobs train all"
    if stray := sorted(adapted - linear.keys()):
        yield f"it changes {len(stray)} layers that the base model lacks, first {stray[0]}"
    for name in sorted(adapted & linear.keys()):
        a, b = (ours.get(f"{PREFIX}{name}.lora_{half}.weight", ()) for half in "AB")
        if (*b[:1], *a[1:]) != linear[name]:
            yield f"{name} is {linear[name]} in the base model, the adapter is for {(*b[:1], *a[1:])}"
            return


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a safetensors file by name, from its header."""
    with open(file, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
    return {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def _own_name(model: str) -> str:
    """Without owner, revision and case."""
    return model.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
