"""ggml's tensor types: how many elements and bytes a block has, and where in it the float16 scales lie.

Source: `ggml-common.h` and `ggml.h` of the llama.cpp that llama-cpp-python 0.3.36 carries. Types that no language model
file of ours can hold are left out, so a file that uses one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """`elements` of a row take `size` bytes; `scales` are the byte offsets of float16 factors in the block."""

    name: str
    code: int  # enum ggml_type
    elements: int
    size: int
    scales: tuple[int, ...] = ()


TYPES = (
    BlockType("F32", 0, 1, 4),
    BlockType("F16", 1, 1, 2),
    BlockType("BF16", 30, 1, 2),
    BlockType("Q8_0", 8, 32, 34, scales=(0,)),
    BlockType("Q5_1", 7, 32, 24, scales=(0, 2)),
    BlockType("Q5_0", 6, 32, 22, scales=(0,)),
    BlockType("Q4_1", 3, 32, 20, scales=(0, 2)),
    BlockType("Q4_0", 2, 32, 18, scales=(0,)),
    BlockType("Q6_K", 14, 256, 210, scales=(208,)),
    BlockType("Q5_K", 13, 256, 176, scales=(0, 2)),
    BlockType("Q4_K", 12, 256, 144, scales=(0, 2)),
    BlockType("Q3_K", 11, 256, 110, scales=(108,)),
    BlockType("Q2_K", 10, 256, 84, scales=(80, 82)),
)
BY_NAME = {kind.name: kind for kind in TYPES}
BY_CODE = {kind.code: kind for kind in TYPES}


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment
