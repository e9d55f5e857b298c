"""Write GGUF files, and the smallest one that llama.cpp loads and runs: proof that the verifier works on this computer.

The tiny model is a llama of one layer with random weights and a byte-level vocabulary; it takes some 200 kB and
milliseconds to make, so nothing binary is shipped.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path

from daemon.artifacts.blocks import BY_NAME, padded
from daemon.artifacts.gguf import ARRAY, BOOL, DEFAULT_ALIGNMENT, FLOAT32, INT32, MAGIC, STRING, UINT32, VERSION, Value
from daemon.artifacts.sizes import Shapes, shapes

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
END = 256  # id of the token that ends a text

Packed = tuple[tuple[int, ...], str, bytes]  # shape with the row length first, name of the block type, data


def write(path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, Packed]) -> None:
    """Write a GGUF of version 3 with these keys and tensors, in this order."""
    table = {name: (shape, kind, len(content)) for name, (shape, kind, content) in tensors.items()}
    with open(path, "wb") as file:
        file.write(header(metadata, table))
        for _, _, content in tensors.values():
            file.write(_filled(content))


def header(metadata: Mapping[str, Value], tensors: Mapping[str, tuple[tuple[int, ...], str, int]]) -> bytes:
    """Everything before the first tensor's data; of a tensor its shape, the name of its block type and its bytes."""
    packed = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        code, content = _value(value)
        packed += _string(key) + struct.pack("<I", code) + content
    offset = 0
    for name, (shape, kind, size) in tensors.items():
        packed += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        packed += struct.pack("<IQ", BY_NAME[kind].code, offset)
        offset += padded(size, DEFAULT_ALIGNMENT)
    return _filled(bytes(packed))


def write_tiny(path: Path) -> None:
    """Write the tiny model in F32 to `path`."""
    table = shapes(CONFIG)
    assert table is not None  # noqa: S101  # llama is predicted
    write(path, metadata(), weights(table, seed=1))


def metadata() -> dict[str, Value]:
    """The header of the tiny model."""
    tokens = [*_byte_tokens(), "<end>", "<pad>", "ab", "[PAD259]"]
    return {
        "general.architecture": "llama",
        "general.file_type": 0,  # all F32
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 1, 5],  # normal, control, normal, unused
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": END,
    }


def weights(table: Shapes, seed: int) -> dict[str, Packed]:
    """Random F32 weights for every tensor of `table`; norms are ones."""
    chance = random.Random(seed)  # noqa: S311  # weights, not secrets
    packed: dict[str, Packed] = {}
    for name, shape in table.items():
        count = math.prod(shape)
        values = [1.0] * count if len(shape) == 1 else [chance.gauss(0, 0.3) for _ in range(count)]
        packed[name] = (shape, "F32", struct.pack(f"<{count}f", *values))
    return packed


def _byte_tokens() -> list[str]:
    """The 256 letters byte-level tokenizers write bytes with: printable Latin-1 as itself, the rest from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [letters[byte] for byte in range(256)]


def _value(value: Value) -> tuple[int, bytes]:
    """The number of the value's type, and its bytes."""
    if isinstance(value, list):
        inner = INT32 if type(value[0]) is int else _value(value[0])[0]  # what llama.cpp wants of token types
        return ARRAY, struct.pack("<IQ", inner, len(value)) + b"".join(_value(item)[1] for item in value)
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, float):
        return FLOAT32, struct.pack("<f", value)
    return UINT32, struct.pack("<I", value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _filled(content: bytes) -> bytes:
    return content.ljust(padded(len(content), DEFAULT_ALIGNMENT), b"\0")
