"""The size law against llama.cpp itself: a dry run of its quantiser names the type of every tensor of real shapes."""

from __future__ import annotations

import ctypes
import math
import os
import re
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from daemon.artifacts import sizes, tiny
from daemon.artifacts.blocks import BY_NAME, padded


def config(model_type: str, *numbers: int, **more: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {"model_type": model_type} | dict(zip((*names, "vocab_size"), numbers, strict=True)) | more


CONFIGS = {
    "Llama-2-7B": config("llama", 4096, 11008, 32, 32, 32, 32000),
    "Llama-3.1-8B": config("llama", 4096, 14336, 32, 32, 8, 128256, rope_scaling={"rope_type": "llama3"}),
    "Llama-3.1-70B": config("llama", 8192, 28672, 80, 64, 8, 128256, rope_scaling={"rope_type": "llama3"}),
    "SmolLM2-135M": config("llama", 576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
    "Mistral-7B": config("mistral", 4096, 14336, 32, 32, 8, 32000),
    "Qwen2.5-7B": config("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "Qwen2.5-0.5B": config("qwen2", 896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "Qwen3-8B": config("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
    "Qwen3-0.6B": config("qwen3", 1024, 3072, 28, 16, 8, 151936, head_dim=128, tie_word_embeddings=True),
    "Gemma-7B": config("gemma", 3072, 24576, 28, 16, 16, 256000, head_dim=256),
    "Gemma-2-2B": config("gemma2", 2304, 9216, 26, 8, 4, 256000, head_dim=256),
    "Gemma-3-1B": config("gemma3_text", 1152, 6912, 26, 4, 1, 262144, head_dim=256),
}
# "[ 1/ 291] blk.0.attn_q.weight - [4096, 4096, 1, 1], type = f16, size = 32.00 MiB -> 17.00 MiB (q8_0)"; a tensor that
# stays as it is ends after its size.
LINE = re.compile(r"\] +(\S+) +- \[.*?type = +(\w+),(?:.*MiB \((\w+)\))?", re.DOTALL)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sizes.Shapes]:
    """A 16-bit GGUF of this shape: a true header before a hole."""
    settings = CONFIGS[request.param]
    table = sizes.shapes(settings)
    assert table is not None
    arch = sizes.ARCHITECTURES[settings["model_type"]]
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": settings["num_hidden_layers"],
        f"{arch}.context_length": 4096,
        f"{arch}.embedding_length": settings["hidden_size"],
        f"{arch}.feed_forward_length": settings["intermediate_size"],
        f"{arch}.attention.head_count": settings["num_attention_heads"],
        f"{arch}.attention.head_count_kv": settings["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.attention.sliding_window": 512,
        f"{arch}.attention.key_length": sizes.head_size(settings),
        f"{arch}.attention.value_length": sizes.head_size(settings),
        f"{arch}.vocab_size": settings["vocab_size"],
    }
    kinds = sizes.types(table, sizes.QUANTS["F16"])
    tensors = {name: (shape, kinds[name].name, math.prod(shape) * kinds[name].size) for name, shape in table.items()}
    path = tmp_path_factory.mktemp("dry") / "f16.gguf"
    header = tiny.header(metadata, tensors)
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(padded(size, 32) for _, _, size in tensors.values()))
    return path, table


def dry_run(path: Path, file_type: int) -> dict[str, str]:
    """Tensor -> the type that llama.cpp would give it."""
    lines: list[str] = []
    listen = llama_cpp.llama_log_callback(lambda level, text, _: lines.append(text.decode()))
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        params = llama_cpp.llama_model_quantize_default_params()
        params.dry_run, params.ftype, params.nthread = True, file_type, 1
        code = llama_cpp.llama_model_quantize(bytes(path), b"/nowhere", ctypes.byref(params))
    finally:
        silent = llama_cpp.llama_log_callback(lambda level, text, _: None)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        KEPT.append(silent)
    assert code == 0, "".join(lines[-5:])
    said = re.split(r"(?=\[ *\d+/ *\d+\])", "".join(lines))
    return {m[1]: (m[3] or m[2]).upper() for part in said if (m := LINE.search(part))}


KEPT: list[Any] = []  # the C side keeps no reference of its own


@pytest.mark.parametrize("quant", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"])
def test_the_law_is_llama_cpps_own(model: tuple[Path, sizes.Shapes], quant: str) -> None:
    """Every tensor gets the type that the law says, so the file has the predicted bytes: a difference of 0."""
    path, table = model
    kind = sizes.QUANTS[quant]

    theirs = dry_run(path, kind.file_type)

    ours = {name: block.name for name, block in sizes.types(table, kind).items()}
    assert theirs == ours
    rows = ((BY_NAME[theirs[name]], shape) for name, shape in table.items())
    assert sizes.data_bytes(table, kind) == sum(
        padded(math.prod(shape) // block.elements * block.size, 32) for block, shape in rows
    )
