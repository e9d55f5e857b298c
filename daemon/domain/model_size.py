"""How large a model is, as far as its name or its folder tell, and what its files will weigh."""

from __future__ import annotations

import re
from pathlib import Path

# Bits per weight in a finished file, measured on dense 7B and 8B models; block formats carry their scales.
BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.57, "Q5_K_M": 5.71, "Q4_K_M": 4.91}
HEADER_BYTES = 8e6  # vocabulary and merges of a large vocabulary
WEIGHT_BYTES = 2  # per parameter, in the base model's files
LORA_SHARE = (
    3.3e-4  # adapter parameters per rank and base parameter, all linear layers: 40 million at rank 16 for a 7.6B
)


def named_parameters(model: str) -> float | None:
    """The count in a name such as 'DeepSeek-R1-Distill-Qwen-7B' or 'SmolLM2-135M'; None when there is none."""
    found = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([BM])(?![a-z])", model.replace("_", "-"), re.IGNORECASE)
    return float(found[-1][0]) * (1e9 if found[-1][1].upper() == "B" else 1e6) if found else None


def folder_parameters(folder: Path) -> float | None:
    """From the weights' size on disk; None for a folder without any."""
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return weights / WEIGHT_BYTES if weights else None


def gguf_bytes(parameters: float, quant: str) -> float:
    return parameters * BITS[quant] / 8 + HEADER_BYTES


def adapter_bytes(parameters: float, rank: int) -> float:
    """In 32-bit floats, as PEFT stores what was trained."""
    return parameters * LORA_SHARE * rank * 4
