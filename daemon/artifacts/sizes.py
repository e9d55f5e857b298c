"""The size law: the exact tensors, and so the exact bytes, that a GGUF of a known architecture must have.

Everything follows from the base model's config.json and the quantisation. This is a second derivation, independent of
the one on the box: a rule that is wrong there must not confirm itself here. Source: llama.cpp `llama-quant.cpp` and
`conversion/base.py`; checked against real files to a difference of 0 bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.artifacts.blocks import BY_NAME, BlockType, padded
from daemon.errors import SpecError

ALIGNMENT = 32  # bytes; what the converter and the quantiser use

# transformers' model_type -> GGUF's general.architecture.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}

# What the layers of these have beside llama's, whatever config.json says: biases of q, k and v; norms of q's and k's
# heads; norms after attention and feed-forward. And where output and embedding are one if config.json says nothing.
BIASES = frozenset({"qwen2"})
HEAD_NORMS = frozenset({"qwen3", "gemma3"})
POST_NORMS = frozenset({"gemma2", "gemma3"})
TIED = frozenset({"gemma", "gemma2", "gemma3"})

Shapes = dict[str, tuple[int, ...]]  # tensor name -> shape, row length first as in the file


@dataclass(frozen=True)
class Quant:
    """A kind of GGUF: its llama_ftype, the type of most tensors, and whether sensitive ones get Q6_K."""

    file_type: int
    base: str
    mixed: bool = False


QUANTS = {
    "F16": Quant(1, "F16"),
    "BF16": Quant(32, "BF16"),
    "Q8_0": Quant(7, "Q8_0"),
    "Q6_K": Quant(18, "Q6_K"),
    "Q5_K_M": Quant(17, "Q5_K", mixed=True),
    "Q4_K_M": Quant(15, "Q4_K", mixed=True),
}

LAYERS_70B = 80  # eight heads share one attn_v there, so llama.cpp gives it more bits

# What a tensor becomes when its rows are not whole blocks of the type on the left.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q8_0": "F16", "Q5_0": "F16", "Q5_1": "F16"}

# Bytes that a GGUF of a 7B or 8B model must exceed, a plain check a person can follow beside the exact one.
FLOORS = {"Q8_0": 5_000_000_000, "Q4_K_M": 3_000_000_000}
FLOOR_PARAMETERS = range(6_500_000_000, 9_000_000_001)

HEADER_LIMIT = 64 << 20  # bytes; vocabulary, merges and template of the largest tokenizers take about 8 MB


def shapes(config: Mapping[str, Any]) -> Shapes | None:
    """Every tensor the GGUF of this base must have, None for an architecture that is not predicted.

    Raises SpecError for a config.json that lacks what its architecture needs.
    """
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None:
        return None
    try:
        return _shapes(config, architecture)
    except (KeyError, TypeError) as error:
        raise SpecError([f"the base model's config.json lacks what a {architecture} needs: {error}"]) from error


def types(table: Shapes, quant: Quant) -> dict[str, BlockType]:
    """The type of every tensor of `table` in a GGUF of this kind."""
    layers = len({name.split(".")[1] for name in table if name.startswith("blk.")})
    head = "output.weight" if "output.weight" in table else "token_embd.weight"
    return {name: _type(name, shape, quant, layers, head) for name, shape in table.items()}


def data_bytes(table: Shapes, quant: Quant) -> int:
    """Bytes from the first tensor's first to the end of the file."""
    kinds = types(table, quant)
    sizes = (math.prod(shape) // kinds[name].elements * kinds[name].size for name, shape in table.items())
    return sum(padded(size, ALIGNMENT) for size in sizes)


def quant_of(file_type: object) -> str:
    """The name of a llama_ftype, as a GGUF carries it; '' for one that is not known here."""
    return next((name for name, quant in QUANTS.items() if quant.file_type == file_type), "")


def parameters(table: Shapes) -> int:
    return sum(math.prod(shape) for shape in table.values())


def floor(table: Shapes | None, quant: str) -> int | None:
    """The plain floor in bytes, where one applies: models of the 7B and 8B class, Q8_0 and Q4_K_M."""
    if table is None or parameters(table) not in FLOOR_PARAMETERS:
        return None
    return FLOORS.get(quant)


def heads(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"])


def kv_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or heads(config))


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // heads(config))


def rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings of old and new config.json: rope_theta and rope_scaling, or both inside rope_parameters."""
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    settings = dict(settings.get("full_attention", settings))  # one for each kind of layer, as gemma3 has it
    settings.setdefault("rope_type", settings.get("type", "default"))
    if "rope_theta" not in settings and "rope_theta" in config:
        settings["rope_theta"] = config["rope_theta"]
    return settings


def _shapes(config: Mapping[str, Any], architecture: str) -> Shapes:
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, kv = heads(config) * head_size(config), kv_heads(config) * head_size(config)
    layer = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (hidden, q),
        "attn_k.weight": (hidden, kv),
        "attn_v.weight": (hidden, kv),
        "attn_output.weight": (q, hidden),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (hidden, ffn),
        "ffn_up.weight": (hidden, ffn),
        "ffn_down.weight": (ffn, hidden),
    }
    if architecture in HEAD_NORMS:
        layer |= {"attn_q_norm.weight": (head_size(config),), "attn_k_norm.weight": (head_size(config),)}
    if architecture in POST_NORMS:
        layer |= {"post_attention_norm.weight": (hidden,), "post_ffw_norm.weight": (hidden,)}
    attention_bias = config.get("attention_bias", False)
    if attention_bias or architecture in BIASES:
        layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    if attention_bias:
        layer |= {"attn_output.bias": (hidden,)}
    if config.get("mlp_bias", False):
        layer |= {"ffn_gate.bias": (ffn,), "ffn_up.bias": (ffn,), "ffn_down.bias": (hidden,)}
    table: Shapes = {"token_embd.weight": (hidden, vocab), "output_norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", architecture in TIED):
        table["output.weight"] = (hidden, vocab)
    if rope(config).get("rope_type") == "llama3":
        table["rope_freqs.weight"] = (head_size(config) // 2,)
    for i in range(config["num_hidden_layers"]):
        table |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return table


def _type(name: str, shape: tuple[int, ...], quant: Quant, layers: int, head: str) -> BlockType:
    if len(shape) == 1:
        return BY_NAME["F32"]  # norms, biases and rope factors are never packed
    wanted = quant.base
    if quant.base.endswith("_K"):
        if name == head:
            wanted = "Q6_K" if shape[0] % BY_NAME[quant.base].elements == 0 else "Q8_0"
        elif quant.mixed and _is_sensitive(name, layers):
            wanted = "Q6_K"
        elif quant.base == "Q4_K" and layers == LAYERS_70B and name.endswith(".attn_v.weight"):
            wanted = "Q5_K"
    while shape[0] % BY_NAME[wanted].elements:
        wanted = FALLBACK[wanted]
    return BY_NAME[wanted]


def _is_sensitive(name: str, layers: int) -> bool:
    """attn_v and ffn_down in the first and last eighth of the layers and in every third between."""
    match = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    if match is None:
        return False
    layer, eighth = int(match[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
