"""L3 on the tiny model: what the converter may rewrite, and what must be equal."""

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.artifacts import gguf, identity, tiny
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.sizes import shapes

MERGES: list[Any] = [["a", "b"], "\u0120 a", [" ", "b"]]
TEMPLATE = "{{ messages }}"


@pytest.fixture
def base(tmp_path: Path) -> BaseIdentity:
    """The base model that the tiny GGUF comes from: 259 tokens, padded to 260 by the converter."""
    tokens = [str(token) for token in tiny.metadata()["tokenizer.ggml.tokens"]]  # type: ignore[union-attr]
    vocab = {token: i for i, token in enumerate(tokens) if i not in (256, 257, 259)}
    added = [{"id": 256, "content": "<end>"}, {"id": 257, "content": "\u2581pad"}]
    files = {
        "config.json": tiny.CONFIG | {"bos_token_id": 3},
        "tokenizer.json": {"model": {"vocab": vocab, "merges": MERGES}, "added_tokens": added},
        "tokenizer_config.json": {"eos_token": {"content": "<end>"}, "chat_template": TEMPLATE},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return BaseIdentity("tiny", tmp_path)


def made(path: Path, change: dict[str, Any] | None = None, drop: str = "") -> gguf.Gguf:
    """The parsed GGUF of that base, with metadata changed and one tensor dropped."""
    metadata = tiny.metadata() | {
        "general.file_type": 1,
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.ggml.merges": ["a b", "\u0120 a", "\u0120 b"],
    }
    tokens = list(metadata["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    tokens[257] = " pad"  # llama.cpp wants the spaces of added tokens as spaces
    metadata["tokenizer.ggml.tokens"] = tokens
    table = shapes(tiny.CONFIG)
    assert table is not None
    weights = {name: packed for name, packed in tiny.weights(table, 1).items() if name != drop}
    tiny.write(path / "model.gguf", metadata | (change or {}), weights)
    return gguf.read(path / "model.gguf")


def test_the_converters_rewritings_are_allowed(tmp_path: Path, base: BaseIdentity) -> None:
    """A padded vocabulary, spaces in added tokens and in merges are what the converter makes of this very base."""
    level = identity.check(made(tmp_path), base, "unknown quantisation")

    assert level.passed, level.problem
    assert level.numbers["tokens"] == 260


def test_types_follow_from_the_quantisation(tmp_path: Path, base: BaseIdentity) -> None:
    """An F32 file that calls itself F16 is not one."""
    level = identity.check(made(tmp_path), base, "F16")

    assert "token_embd.weight is F32, a F16 has F16 there" in level.problem


CHANGED = [
    ("general.architecture", "qwen2", "architecture 'qwen2'"),
    ("llama.block_count", 2, "block_count is 2"),
    ("llama.context_length", 64, "context_length is 64"),
    ("llama.attention.head_count_kv", 2, "head_count_kv is 2"),
    ("llama.attention.layer_norm_rms_epsilon", 1e-6, "epsilon is"),
    ("llama.rope.freq_base", 5e5, "freq_base is 500000.0"),
    ("tokenizer.ggml.bos_token_id", 4, "bos token is 4, the base model has 3"),
    ("tokenizer.ggml.eos_token_id", 5, "eos token is 5, the base model has 256"),
    ("tokenizer.ggml.merges", ["a b"], "merge 1 is None"),
    ("tokenizer.ggml.merges", ["a c", "\u0120 a", "\u0120 b"], "merge 0 is 'a c'"),
    ("tokenizer.ggml.tokens", ["x"] * 260, "token 0 is 'x'"),
    ("tokenizer.ggml.tokens", ["x"], "1 tokens, the base model has at least 259"),
    ("tokenizer.chat_template", "{{ evil }}", "chat template is not the base model's"),
    ("llama.block_count", "9" * 10_000, "block_count is '99999"),
]


@pytest.mark.parametrize(("key", "value", "says"), CHANGED)
def test_each_difference_is_named(tmp_path: Path, base: BaseIdentity, key: str, value: Any, says: str) -> None:
    """Whatever differs from the local base model is a failure that names it."""
    level = identity.check(made(tmp_path, {key: value}), base, "")

    assert not level.passed
    assert says in level.problem and len(level.problem) < 1000


def test_a_template_that_is_no_text_differs_too(tmp_path: Path, base: BaseIdentity) -> None:
    """Bytes that are not UTF-8, from a file whose manifest fits it: a verdict, not an error of ours."""
    made(tmp_path)
    path = tmp_path / "model.gguf"
    path.write_bytes(path.read_bytes().replace(TEMPLATE.encode(), b"\xff" * len(TEMPLATE)))

    level = identity.check(gguf.read(path), base, "")

    assert "chat template is not the base model's" in level.problem


def test_a_missing_tensor_is_named(tmp_path: Path, base: BaseIdentity) -> None:
    """The table of tensors is the base model's, no more and no less."""
    level = identity.check(made(tmp_path, drop="blk.0.ffn_up.weight"), base, "")

    assert "'blk.0.ffn_up.weight' (11 here, 12 expected)" in level.problem


def test_a_token_beyond_the_vocabulary_is_not_looked_for(tmp_path: Path, base: BaseIdentity) -> None:
    """Gemma 3 as text lists a token for images whose id is vocab_size itself: the converter leaves it out."""
    base.tokenizer["added_tokens"].append({"id": 260, "content": "<image_soft_token>"})

    level = identity.check(made(tmp_path), base, "")

    assert level.passed, level.problem


def test_an_architecture_that_is_not_predicted_is_reported(tmp_path: Path, base: BaseIdentity) -> None:
    """Where no table can be derived, the report says so, and no scalar is compared: the converter rewrites deepseek2's.

    The tokenizer and the kind of the file still are.
    """
    base.config["model_type"] = "deepseek_v2"
    rewritten = made(tmp_path, {"llama.attention.head_count_kv": 1, "llama.rope.freq_base": 1e6})

    level = identity.check(rewritten, base, "F16")

    assert level.passed, level.problem
    assert "not predicted" in level.warnings[0]
    assert "general.file_type is 1" in identity.check(rewritten, base, "Q8_0").problem
    other = made(tmp_path, {"tokenizer.chat_template": "{{ evil }}"})
    assert "chat template is not the base model's" in identity.check(other, base, "F16").problem
