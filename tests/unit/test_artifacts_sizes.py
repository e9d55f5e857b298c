"""The size law against the sizes of published models, and the mixture rules row by row."""

from typing import Any

import pytest

from daemon.artifacts import sizes
from daemon.errors import SpecError


def llama(hidden: int, ffn: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    """A config.json of the llama shape."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
    } | more


LLAMA_2_7B = llama(4096, 11008, 32, 32, 32, 32000)
MISTRAL_7B = llama(4096, 14336, 32, 32, 8, 32000, model_type="mistral")
LLAMA_3_1_8B = llama(4096, 14336, 32, 32, 8, 128256, rope_scaling={"rope_type": "llama3"})
LLAMA_3_2_3B = llama(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True, rope_scaling={"rope_type": "llama3"})
QWEN_2_5_7B = llama(3584, 18944, 28, 28, 4, 152064, model_type="qwen2")
QWEN_2_5_HALF_B = llama(896, 4864, 24, 14, 2, 151936, model_type="qwen2", tie_word_embeddings=True)


# 1e9 bytes of tensor data, from files that others published and llama.cpp's own dry runs.
PUBLISHED = [
    (LLAMA_2_7B, "Q8_0", 7.160),
    (LLAMA_2_7B, "Q4_K_M", 4.080),
    (MISTRAL_7B, "Q8_0", 7.695),
    (MISTRAL_7B, "Q6_K", 5.941),
    (MISTRAL_7B, "Q5_K_M", 5.131),
    (MISTRAL_7B, "Q4_K_M", 4.368),
    (LLAMA_3_1_8B, "F16", 16.06),
    (LLAMA_3_1_8B, "Q8_0", 8.533),
    (LLAMA_3_1_8B, "Q4_K_M", 4.913),
    (LLAMA_3_2_3B, "Q8_0", 3.414),
    (LLAMA_3_2_3B, "Q4_K_M", 2.012),
    (QWEN_2_5_7B, "Q8_0", 8.093),
    (QWEN_2_5_7B, "Q4_K_M", 4.677),
    (QWEN_2_5_HALF_B, "Q8_0", 0.525),
    (QWEN_2_5_HALF_B, "Q4_K_M", 0.392),
]


@pytest.mark.parametrize(("config", "quant", "gigabytes"), PUBLISHED)
def test_predicts_published_sizes(config: dict[str, Any], quant: str, gigabytes: float) -> None:
    """Each prediction rounds to the published size."""
    table = sizes.shapes(config)

    assert table is not None
    assert sizes.data_bytes(table, sizes.QUANTS[quant]) / 1e9 == pytest.approx(gigabytes, abs=0.0055)


def test_predicts_one_published_file_to_the_byte() -> None:
    """Mistral-7B Q8_0: the tensors of the published 7,695,857,280 bytes take 7,695,122,432."""
    table = sizes.shapes(MISTRAL_7B)

    assert table is not None
    assert sizes.data_bytes(table, sizes.QUANTS["Q8_0"]) == 7_695_122_432


FLOORS = [
    (MISTRAL_7B, "Q8_0", 5_000_000_000),
    (LLAMA_3_1_8B, "Q4_K_M", 3_000_000_000),
    (MISTRAL_7B, "Q6_K", None),
    (LLAMA_3_2_3B, "Q8_0", None),
    (QWEN_2_5_HALF_B, "Q4_K_M", None),
]


@pytest.mark.parametrize(("config", "quant", "floor"), FLOORS)
def test_the_plain_floors_apply_to_7b_and_8b_alone(config: dict[str, Any], quant: str, floor: int | None) -> None:
    """A valid 3B file is smaller than the floors, so they must not reach it."""
    assert sizes.floor(sizes.shapes(config), quant) == floor


TYPES = [
    # 256-multiples, 32 layers: sensitive in the first and last four and every third between
    (MISTRAL_7B, "Q4_K_M", "blk.0.attn_v.weight", "Q6_K"),
    (MISTRAL_7B, "Q4_K_M", "blk.4.attn_v.weight", "Q4_K"),
    (MISTRAL_7B, "Q4_K_M", "blk.6.ffn_down.weight", "Q6_K"),
    (MISTRAL_7B, "Q4_K_M", "blk.28.ffn_down.weight", "Q6_K"),
    (MISTRAL_7B, "Q4_K_M", "blk.0.attn_q.weight", "Q4_K"),
    (MISTRAL_7B, "Q4_K_M", "output.weight", "Q6_K"),
    (MISTRAL_7B, "Q4_K_M", "token_embd.weight", "Q4_K"),
    (MISTRAL_7B, "Q6_K", "blk.4.attn_v.weight", "Q6_K"),
    (MISTRAL_7B, "Q8_0", "output_norm.weight", "F32"),
    # tied: the embedding is the head
    (LLAMA_3_2_3B, "Q4_K_M", "token_embd.weight", "Q6_K"),
    (LLAMA_3_2_3B, "Q8_0", "rope_freqs.weight", "F32"),
    # rows of 896 are not whole blocks of 256
    (QWEN_2_5_HALF_B, "Q4_K_M", "blk.9.attn_q.weight", "Q5_0"),
    (QWEN_2_5_HALF_B, "Q5_K_M", "blk.9.attn_q.weight", "Q5_1"),
    (QWEN_2_5_HALF_B, "Q4_K_M", "blk.0.attn_v.weight", "Q8_0"),
    (QWEN_2_5_HALF_B, "Q4_K_M", "token_embd.weight", "Q8_0"),
    (QWEN_2_5_HALF_B, "Q8_0", "blk.0.attn_q.bias", "F32"),
    # rows of 48 are not even whole blocks of 32
    (llama(48, 96, 1, 2, 1, 100), "Q8_0", "blk.0.attn_q.weight", "F16"),
]


@pytest.mark.parametrize(("config", "quant", "name", "kind"), TYPES)
def test_tensor_types(config: dict[str, Any], quant: str, name: str, kind: str) -> None:
    """The mixtures and fallbacks of llama.cpp, one row each."""
    table = sizes.shapes(config)

    assert table is not None
    assert sizes.types(table, sizes.QUANTS[quant])[name].name == kind


def test_an_unknown_architecture_is_not_guessed() -> None:
    """No prediction is better than a wrong one."""
    assert sizes.shapes(llama(64, 128, 1, 2, 1, 100, model_type="mamba")) is None


def test_a_config_without_what_its_architecture_needs_is_the_specs_fault() -> None:
    """The missing key is named, before anything is rented for it."""
    with pytest.raises(SpecError, match="hidden_size"):
        sizes.shapes({"model_type": "llama"})


def test_a_base_with_biases_has_them_as_tensors() -> None:
    """As Granite's code models, which call themselves llama: two more rows in config.json, seven tensors a layer."""
    plain = sizes.shapes(llama(64, 128, 1, 4, 2, 100))
    biased = sizes.shapes(llama(64, 128, 1, 4, 2, 100, attention_bias=True, mlp_bias=True))

    assert plain is not None and biased is not None
    assert {name: shape for name, shape in biased.items() if name not in plain} == {
        "blk.0.attn_q.bias": (64,),
        "blk.0.attn_k.bias": (32,),
        "blk.0.attn_v.bias": (32,),
        "blk.0.attn_output.bias": (64,),
        "blk.0.ffn_gate.bias": (128,),
        "blk.0.ffn_up.bias": (128,),
        "blk.0.ffn_down.bias": (64,),
    }


def test_rope_settings_of_old_and_new_configs() -> None:
    """rope_theta beside rope_scaling, and both inside rope_parameters, mean the same."""
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3"}}

    assert (sizes.rope(old)["rope_theta"], sizes.rope(old)["rope_type"]) == (5e5, "llama3")
    assert (sizes.rope(new)["rope_theta"], sizes.rope(new)["rope_type"]) == (5e5, "llama3")
