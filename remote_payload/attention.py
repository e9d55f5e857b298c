"""Attention over a packed row: many sequences side by side, none of which sees another.

On a card it is torch's own variable-length flash attention, which needs no further package and no compiling; elsewhere
one SDPA call a sequence. Registered with transformers under NAME, without a mask function: where the sequences lie is
told with the row, so no mask is ever made, and a row that does not tell is refused.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch before 2.10: SDPA does it there, slowly
    varlen_attn = None

NAME = "packed"
# The kernel itself has always shared keys among heads; newer versions of the function around it want to be told.
GROUPED = varlen_attn is not None and "enable_gqa" in inspect.signature(varlen_attn).parameters


def register() -> str:
    """Make transformers know it; the name to ask for it by. May be called again."""
    AttentionInterface.register(NAME, attend)
    return NAME


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    key_index: Tensor | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What the queries (1, heads, T, width) read of keys and values (1, key heads, T, width), as (1, T, heads, width).

    `cu_seq_lens_*` (int32) are where each sequence starts among the queries and among the keys, and the last end.
    A sequence with more keys than queries is the end of one whose beginning is another's too; `key_index` says which
    of the row's keys, in order, the sequences read. Causal always.
    """
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))
    if key_index is not None:
        k, v = k[key_index], v[key_index]
    window = -1 if sliding_window is None else sliding_window - 1
    if varlen_attn is not None and q.is_cuda:
        told = {"enable_gqa": True} if GROUPED else {}
        out = varlen_attn(
            q, k, v, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k,
            scale=scaling, window_size=(window, 0), **told,
        )  # fmt: skip
        return out[None], None
    return one_by_one(q, k, v, cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist(), scaling, window)[None], None


def one_by_one(
    q: Tensor, k: Tensor, v: Tensor, q_bounds: list[int], k_bounds: list[int], scale: float, window: int
) -> Tensor:
    """The same without flash attention: q (T, heads, width), k and v (T', key heads, width); out as q."""
    outs = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True):
        parts = [x.transpose(0, 1)[None] for x in (q[q0:q1], k[k0:k1], v[k0:k1])]
        whole = q1 - q0 == k1 - k0 and window < 0
        mask = None if whole else seen(q1 - q0, k1 - k0, window, q.device)
        out = scaled_dot_product_attention(*parts, attn_mask=mask, is_causal=whole, scale=scale, enable_gqa=True)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def seen(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys) of whether the i-th of the last `queries` tokens reads the j-th of `keys`."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return (distance >= 0) & ((distance <= window) | (window < 0))
