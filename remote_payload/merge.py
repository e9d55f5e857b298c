"""Folding a LoRA adapter into the base model: W + (B @ A) * alpha / r in float64, rounded to float32 once.

One arithmetic for both of its users: the GGUF stage merges each tensor while the converter streams past it, and
`evaluate` merges the same tensors into the model it scores, so that the reference answers come from exactly the weights
that went into the file. PEFT merges a float64 model to the same bits; a float32 one to others in the last place of a
few weights, and to others again where a library sums in another order. Adapters with anything beyond plain LoRA (DoRA,
rank patterns, trained embeddings, ...) are merged by PEFT itself into a folder on disk.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from remote_payload.adapters import PREFIX, strangeness
from remote_payload.contract import Exit
from remote_payload.script import ScriptFailed

ROWS = 16  # of a weight, merged at a time


class MergeFailed(ScriptFailed):
    """The adapter does not fit the base model, or the merged weights are not numbers."""

    def __init__(self, message: str) -> None:
        super().__init__(Exit.MERGE_GATE, message)


@dataclass(frozen=True)
class Delta:
    """What LoRA adds to one weight of shape (out, in): `b` (out, r), `a` (r, in), both float32 on the CPU."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight, float32, where `weight` is.

        It is made on the CPU in float64 and rounded once, so that neither a card nor the order in which a processor's
        library sums changes a bit of it. A few rows at a time, since what stays in the cache takes no longer than
        in float32. Raises MergeFailed for a delta of another shape.
        """
        if (len(self.b), self.a.shape[1]) != weight.shape:
            shape = f"{len(self.b)}x{self.a.shape[1]}"
            raise MergeFailed(f"the adapter changes a weight of {tuple(weight.shape)} by one of {shape}")
        a, b, base = self.a.double() * self.scale, self.b.double(), weight.cpu()
        merged = torch.empty(weight.shape)
        for start in range(0, len(b), ROWS):
            rows = slice(start, start + ROWS)
            merged[rows] = torch.addmm(base[rows].double(), b[rows], a)
        return merged.to(weight.device)


def why_not_plain(adapter: Path) -> str | None:
    """What in this adapter only PEFT can merge, or None when `read_deltas` can read all of it."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    if reason := next(strangeness(config), None):
        return reason
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    strange = [n for n in names if not n.startswith(PREFIX) or not n.endswith((".lora_A.weight", ".lora_B.weight"))]
    return f"it trains {strange[0]}" if strange else None


def read_deltas(adapter: Path) -> dict[str, Delta]:
    """The adapter's deltas by the name of the weight they change. Raises MergeFailed for halves and non-numbers."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {name: t.float() for name, t in load_file(adapter / "adapter_model.safetensors").items()}
    modules = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in tensors}
    deltas = {}
    for module in sorted(modules):
        a, b = (tensors.get(f"{PREFIX}{module}.lora_{half}.weight") for half in "AB")
        if a is None or b is None:
            raise MergeFailed(f"adapter {adapter.name}: {module} has only one of its two LoRA matrices")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise MergeFailed(f"adapter {adapter.name}: {module} holds values that are not numbers")
        deltas[f"{module}.weight"] = Delta(a, b, config["lora_alpha"] / config["r"])
    return deltas


def check_targets(deltas: Collection[str], weights: Collection[str]) -> None:
    """Raise MergeFailed if the adapter changes a weight that the base model does not have."""
    missing = sorted(set(deltas) - set(weights))
    if missing:
        raise MergeFailed(f"the adapter changes {len(missing)} weights that the base model lacks, first {missing[0]}")


def merge_into(model: Any, deltas: dict[str, Delta]) -> None:
    """Make the loaded base model the merged one, on whatever device. Nothing is kept of what was there."""
    weights = {name: weight.data for name, weight in model.named_parameters()}
    check_targets(deltas, weights)
    for name, delta in deltas.items():
        weights[name].copy_(delta.added_to(weights[name]))


def merge_with_peft(base: Path, adapter: Path, into: Path) -> None:
    """Write the merged model, float32, as a folder of its own. Needs the whole model in memory."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    modules = {name for name, _ in model.named_modules()}
    trained = load_file(adapter / "adapter_model.safetensors")
    targets = {name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in trained if ".lora_" in name}
    check_targets(targets, modules)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(into)
