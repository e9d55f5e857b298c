"""The quantisations homeport offers, and the exact size of the GGUF each gives. Pure: no torch, no files.

llama.cpp chooses every tensor's type from its name, its row length and its layer; those rules are here as data, so the
size of a file is known before it is written. Source: llama.cpp's `llama-quant.cpp` at the pinned commit, and
`conversion/base.py` for the types that the converter writes itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

ALIGNMENT = 32  # bytes; every tensor's data starts at a multiple of it

# ggml type -> (elements in a block, bytes of a block); a row must be whole blocks.
BLOCK = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q4_K": (256, 144),
}
# What a tensor becomes when its rows are not whole blocks of the type on the left.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q8_0": "F16", "Q5_0": "F16", "Q5_1": "F16"}

PREDICTED_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})  # dense; others have rules of their own


@dataclass(frozen=True)
class Quant:
    """A kind of GGUF file: llama.cpp's number for it, the type most tensors get, and whether some get a better one."""

    name: str
    ftype: int  # enum llama_ftype
    base: str
    mixed: bool = False  # attn_v and ffn_down of some layers get Q6_K

    @property
    def needs_quantiser(self) -> bool:
        """Whether compiled code (llama_model_quantize) is needed; the converter itself writes the others."""
        return self.base.endswith("_K")


QUANTS = {
    quant.name: quant
    for quant in (
        Quant("F16", 1, "F16"),
        Quant("BF16", 32, "BF16"),
        Quant("Q8_0", 7, "Q8_0"),
        Quant("Q6_K", 18, "Q6_K"),
        Quant("Q5_K_M", 17, "Q5_K", mixed=True),
        Quant("Q4_K_M", 15, "Q4_K", mixed=True),
    )
}


def data_bytes(quant: Quant, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes from the first tensor to the end of the file, for GGUF tensor names and shapes (row length last)."""
    layers = len({int(m[1]) for name in shapes if (m := re.match(r"blk\.(\d+)\.", name))})
    tied = "output.weight" not in shapes
    total = 0
    for name, shape in shapes.items():
        size, block_bytes = BLOCK[tensor_type(quant, name, shape, layers=layers, tied=tied)]
        total += aligned(math.prod(shape) // size * block_bytes)
    return total


def tensor_type(quant: Quant, name: str, shape: tuple[int, ...], *, layers: int, tied: bool) -> str:
    """The ggml type of one tensor in a file of this kind."""
    if len(shape) < 2 or name.endswith("_norm.weight") or not name.endswith(".weight"):
        return "F32"
    wanted = quant.base
    if quant.needs_quantiser:
        head = name == "output.weight" or (tied and name == "token_embd.weight")
        better = quant.mixed and _is_sensitive(name, layers)
        if head:
            wanted = "Q6_K" if shape[-1] % BLOCK[quant.base][0] == 0 else "Q8_0"
        elif better:
            wanted = "Q6_K"
        elif quant.base == "Q4_K" and layers == 80 and name.endswith("attn_v.weight"):
            wanted = "Q5_K"  # the 70B rule: eight heads share this tensor
    while shape[-1] % BLOCK[wanted][0]:
        wanted = FALLBACK[wanted]
    return wanted


def _is_sensitive(name: str, layers: int) -> bool:
    """attn_v and ffn_down of the first and last eighth of the layers and every third between."""
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if match is None:
        return False
    layer, eighth = int(match[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def aligned(size: int) -> int:
    """`size` rounded up to the file's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
