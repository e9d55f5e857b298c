"""L3: the GGUF is of the base model that this computer knows: same architecture, tensors, vocabulary and template.

Every expected value is derived from the local base files and the quantisation alone. The converter's few rewritings
(padding of the vocabulary, spaces in user-defined tokens) are allowed for and nothing else is.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from daemon.artifacts import sizes
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.gguf import Gguf
from daemon.artifacts.levels import IDENTITY, Level, failed, passed

ROPE_BASE = 10000.0  # what llama.cpp takes where a file does not say, as the converter leaves it for gemma
WORD_MARK = "\u2581"  # how SentencePiece writes a space


def check(file: Gguf, base: BaseIdentity, quant: str) -> Level:
    """L3 for one parsed GGUF that should be `quant` of `base`."""
    table = sizes.shapes(base.config)
    numbers: dict[str, Any] = {"predicted": table is not None, "tokens": len(_strings(file, "tokenizer.ggml.tokens"))}
    problem = next((text for text in _objections(file, base, quant, table) if text), None)
    if problem:
        return failed(IDENTITY, problem, numbers)
    numbers["chat_template_sha256"] = _template_sha256(base.chat_template)
    if table is None:
        unknown = f"architecture {file.architecture!r} is not predicted: of its tensors only the sum was checked"
        return passed(IDENTITY, numbers, (unknown,))
    return passed(IDENTITY, numbers)


def _objections(file: Gguf, base: BaseIdentity, quant: str, table: sizes.Shapes | None) -> Iterator[str]:
    yield _architecture_problem(file, base)
    yield _kind_problem(file, quant)
    if table is not None:
        yield from _scalar_problems(file, base.config)
        yield _tensor_problem(file, table, quant)
    yield _vocabulary_problem(file, base)
    yield _merges_problem(file, base)
    yield from _special_problems(file, base)
    yield _template_problem(file, base)


def _architecture_problem(file: Gguf, base: BaseIdentity) -> str:
    expected = sizes.ARCHITECTURES.get(base.config.get("model_type", ""))
    if expected is not None and file.architecture != expected:
        return f"architecture {file.architecture!r}, the base model gives {expected!r}"
    return ""


def _kind_problem(file: Gguf, quant: str) -> str:
    have = file.metadata.get("general.file_type")
    if quant in sizes.QUANTS and have != sizes.QUANTS[quant].file_type:
        return f"general.file_type is {have!r}, a {quant} has {sizes.QUANTS[quant].file_type}"
    return ""


def _scalar_problems(file: Gguf, config: dict[str, Any]) -> Iterator[str]:
    """Scalars of the header that follow from config.json; what config.json does not say is not compared.

    For architectures that are predicted: of others the converter rewrites some (deepseek2 has one key-value head).
    """
    arch = file.architecture
    expected: dict[str, Any] = {
        f"{arch}.block_count": config.get("num_hidden_layers"),
        f"{arch}.context_length": config.get("max_position_embeddings"),
        f"{arch}.embedding_length": config.get("hidden_size"),
        f"{arch}.feed_forward_length": config.get("intermediate_size"),
        f"{arch}.attention.head_count": config.get("num_attention_heads"),
        f"{arch}.attention.head_count_kv": config.get("num_key_value_heads"),
        f"{arch}.attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        f"{arch}.rope.freq_base": sizes.rope(config).get("rope_theta"),
    }
    for key, want in expected.items():
        have = file.metadata.get(key, ROPE_BASE if key.endswith(".rope.freq_base") else None)
        if isinstance(have, float) and want is not None:
            want = _float32(want)
        if want is not None and have != want:
            yield f"{key} is {have!r}, the base model gives {want!r}"


def _tensor_problem(file: Gguf, table: sizes.Shapes, quant: str) -> str:
    """Names, shapes and types against the predicted table; an unknown quantisation leaves the types unchecked."""
    found = {tensor.name: tensor for tensor in file.tensors}
    if found.keys() != table.keys():
        odd = sorted(found.keys() ^ table.keys())
        return f"tensors differ from the base model's, first {odd[0]!r} ({len(found)} here, {len(table)} expected)"
    kinds = sizes.types(table, sizes.QUANTS[quant]) if quant in sizes.QUANTS else {}
    for name, shape in table.items():
        if found[name].shape != shape:
            return f"{name} has shape {found[name].shape}, the base model gives {shape}"
        if name in kinds and found[name].type is not kinds[name]:
            return f"{name} is {found[name].type.name}, a {quant} has {kinds[name].name} there"
    return ""


def _vocabulary_problem(file: Gguf, base: BaseIdentity) -> str:
    limit = base.config.get("vocab_size") or math.inf  # the converter leaves out the rest: gemma3 has a token beyond
    expected = {i: token for i, token in vocabulary(base.tokenizer).items() if i < limit}
    tokens = _strings(file, "tokenizer.ggml.tokens")
    if expected and max(expected) >= len(tokens):
        return f"{len(tokens)} tokens, the base model has at least {max(expected) + 1}"
    for i, token in enumerate(tokens):
        want = expected.get(i, f"[PAD{i}]")
        if token not in (want, want.replace(WORD_MARK, " ")):
            return f"token {i} is {token!r}, the base model has {want!r}"
    return ""


def vocabulary(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Token by id from tokenizer.json, added tokens included."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        tokens = {int(i): str(token) for token, i in vocab.items()}
    else:  # a unigram model lists pairs of token and score
        tokens = {i: str(token) for i, (token, _) in enumerate(vocab)}
    return tokens | {int(added["id"]): str(added["content"]) for added in tokenizer.get("added_tokens", [])}


def _merges_problem(file: Gguf, base: BaseIdentity) -> str:
    if file.metadata.get("tokenizer.ggml.model") != "gpt2":
        return ""  # the SentencePiece kind merges by score and carries no list
    merges = base.tokenizer["model"].get("merges", [])
    expected = (m if isinstance(m, str) else " ".join(part.replace(" ", "\u0120") for part in m) for m in merges)
    for i, (have, want) in enumerate(zip_longest(_strings(file, "tokenizer.ggml.merges"), expected)):
        if have != want:
            return f"merge {i} is {have!r}, the base model has {want!r}"
    return ""


def _special_problems(file: Gguf, base: BaseIdentity) -> Iterator[str]:
    for kind in ("bos", "eos"):
        want = special_id(base, kind)
        have = file.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if want is not None and have != want:
            yield f"{kind} token is {have}, the base model has {want}"


def special_id(base: BaseIdentity, kind: str) -> int | None:
    """The id of the bos or eos token: by its text in tokenizer_config.json, else the number in config.json."""
    token = base.tokenizer_config.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text:
        return next((i for i, known in vocabulary(base.tokenizer).items() if known == text), None)
    number = base.config.get(f"{kind}_token_id")
    return number if isinstance(number, int) else None


def _template_problem(file: Gguf, base: BaseIdentity) -> str:
    have = file.metadata.get("tokenizer.chat_template")
    if have != base.chat_template:
        ours = _template_sha256(base.chat_template)
        theirs = _template_sha256(have if isinstance(have, str) else None)
        return f"the chat template is not the base model's (sha256 {theirs}, expected {ours})"
    return ""


def _template_sha256(template: str | None) -> str | None:
    return None if template is None else hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()


def _strings(file: Gguf, key: str) -> list[str]:
    value = file.metadata.get(key, [])
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _float32(value: float) -> float:
    """`value` as the file can hold it."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
