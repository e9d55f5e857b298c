"""How many tokens one forward may have, and whether its activations are kept or computed again.

Keeping them is what makes LoRA fast: with a frozen base, recomputing costs half as much again. It takes about 4.4 MB a
token of a 7B, so a step is cut into rows that fit the memory; only where a row would be too short for the card to work
at speed, or for one sample, are activations recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WORTHWHILE = 4096  # tokens; below that the products of a 7B no longer fill an H100
ENOUGH = 10240  # tokens; longer rows gain nothing that was measured
SLACK = 3 << 30  # bytes for the allocator's gaps, the CUDA libraries and whatever else lives on the card
ADAPTER = 4 + 4 + 8 + 2  # bytes a trained weight: fp32 itself, its gradient, Adam's two, its rounded copy
HEAD_ROWS = 4096  # of logits at a time (head.TOKENS)


@dataclass(frozen=True)
class Room:
    """What one forward may take."""

    tokens: int
    recompute: bool


def room(config: Any, free: int, trained: int, longest: int) -> Room:
    """For a model on a card with `free` bytes left, `trained` adapter weights, and `longest` tokens in a sample."""
    left = free - SLACK - ADAPTER * trained - 2 * HEAD_ROWS * config.vocab_size
    kept = left // (layer_bytes(config) * config.num_hidden_layers)
    if kept >= max(WORTHWHILE, longest):
        return Room(min(kept, ENOUGH), recompute=False)
    # One layer's activations at a time, and every layer's input.
    again = left // (layer_bytes(config) + 2 * config.hidden_size * config.num_hidden_layers)
    return Room(min(max(again, longest), ENOUGH), recompute=True)


def layer_bytes(config: Any) -> int:
    """What one decoder layer keeps of a token for its backward, in bf16."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_attention_heads * head, config.num_key_value_heads * head
    return 2 * (4 * config.hidden_size + 2 * attention[0] + 2 * attention[1] + 3 * config.intermediate_size)
