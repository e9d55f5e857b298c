"""The size law: how many bytes of tensors a GGUF of each kind has."""

from __future__ import annotations

import pytest

from remote_payload.quants import QUANTS, data_bytes, tensor_type

Shapes = dict[str, tuple[int, ...]]


def llama(*, hidden: int, ffn: int, layers: int, kv: int, vocabulary: int, tied: bool = False) -> Shapes:
    """GGUF names and shapes of a Llama; `kv` is the width of k and v."""
    shapes: Shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocabulary, hidden)
    for i in range(layers):
        for name, shape in {
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (kv, hidden),
            "attn_v": (kv, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (ffn, hidden),
            "ffn_up": (ffn, hidden),
            "ffn_down": (hidden, ffn),
        }.items():
            shapes[f"blk.{i}.{name}.weight"] = shape
    return shapes


MISTRAL_7B = llama(hidden=4096, ffn=14336, layers=32, kv=1024, vocabulary=32000)
LLAMA_3_8B = llama(hidden=4096, ffn=14336, layers=32, kv=1024, vocabulary=128256)
SMOLLM2 = llama(hidden=576, ffn=1536, layers=30, kv=192, vocabulary=49152, tied=True)


def test_a_published_q8_0_has_the_predicted_bytes() -> None:
    """Mistral-7B's Q8_0, 7,695,857,280 bytes as published, is a 0.73 MB header and exactly this."""
    assert data_bytes(QUANTS["Q8_0"], MISTRAL_7B) == 7_695_122_432


@pytest.mark.parametrize(
    ("quant", "billions"), [("F16", 16.06), ("Q8_0", 8.533), ("Q6_K", 6.588), ("Q5_K_M", 5.725), ("Q4_K_M", 4.913)]
)
def test_llama_3_8b_has_its_known_sizes(quant: str, billions: float) -> None:
    """Each kind of file of an 8B model has the size that is known for it, to the last digit given."""
    digits = len(str(billions).partition(".")[2])

    assert round(data_bytes(QUANTS[quant], LLAMA_3_8B) / 1e9, digits) == billions


@pytest.mark.parametrize(
    ("name", "quant", "expected"),
    [
        ("output_norm.weight", "Q4_K_M", "F32"),
        ("blk.0.attn_q.bias", "Q8_0", "F32"),
        ("output.weight", "Q4_K_M", "Q6_K"),
        ("token_embd.weight", "Q4_K_M", "Q4_K"),
        ("blk.0.attn_v.weight", "Q4_K_M", "Q6_K"),
        ("blk.4.attn_v.weight", "Q4_K_M", "Q4_K"),
        ("blk.6.ffn_down.weight", "Q5_K_M", "Q6_K"),
        ("blk.31.attn_k.weight", "Q5_K_M", "Q5_K"),
        ("blk.31.ffn_down.weight", "Q8_0", "Q8_0"),
    ],
)
def test_types_of_an_untied_model(name: str, quant: str, expected: str) -> None:
    """Heads and sensitive layers get more bits, norms and biases stay float32."""
    shape = MISTRAL_7B.get(name, (4096,))

    assert tensor_type(QUANTS[quant], name, shape, layers=32, tied=False) == expected


def test_a_tied_embedding_is_stored_as_the_output_it_also_is() -> None:
    """Without an output tensor the embedding takes the output's type."""
    assert tensor_type(QUANTS["Q4_K_M"], "token_embd.weight", (32000, 4096), layers=32, tied=True) == "Q6_K"


@pytest.mark.parametrize(
    ("quant", "width", "expected"),
    [("Q4_K_M", 576, "Q5_0"), ("Q5_K_M", 576, "Q5_1"), ("Q6_K", 576, "Q8_0"), ("Q8_0", 48, "F16")],
)
def test_rows_that_are_no_whole_blocks_fall_back(quant: str, width: int, expected: str) -> None:
    """A row of 576 has no whole blocks of 256, one of 48 none of 32."""
    assert tensor_type(QUANTS[quant], "blk.4.attn_q.weight", (width, width), layers=30, tied=False) == expected


def test_smollm2_sizes_as_measured() -> None:
    """SmolLM2-135M, whose rows force fallbacks, as converted here: equal headers before the predicted bytes."""
    measured = {"Q8_0": 144_810_848, "Q6_K": 138_382_688}

    headers = {size - data_bytes(QUANTS[quant], SMOLLM2) for quant, size in measured.items()}

    assert len(headers) == 1
    assert 1_500_000 < headers.pop() < 2_000_000
