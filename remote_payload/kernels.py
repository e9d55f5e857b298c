"""What lies between a decoder's products, in one kernel each: the gate of the MLP, rotary positions, RMSNorm.

Eager PyTorch reads and writes the activations several times for each of these. On cards only; the arithmetic is the
library's own, in fp32 and rounded once.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

try:
    import triton
    import triton.language as tl
except ImportError:  # torch brings it where it has cards
    triton = None

BLOCK = 2048  # elements of one program


def apply(model: Any) -> list[str]:
    """Put the kernels into `model` where its layers have the usual form; what was replaced, for the log."""
    done = set()
    if triton is None:
        return []
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("MLP") and getattr(model.config, "hidden_act", None) == "silu":
            module.forward = types.MethodType(gated, module)
            done.add("gate")
        elif kind.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = types.MethodType(normed, module)
            done.add("norm")
        elif kind.endswith("Attention") and (module.head_dim & (module.head_dim - 1)) == 0:
            modeling: Any = sys.modules[type(module).__module__]
            if not isinstance(modeling.apply_rotary_pos_emb, Rotate):
                modeling.apply_rotary_pos_emb = Rotate(modeling.apply_rotary_pos_emb)
            done.add("rotary")
    return sorted(done)


def gated(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(Gate.apply(self.gate_proj(x), self.up_proj(x)))


def normed(self: Any, x: Tensor) -> Tensor:
    return rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


class Rotate:
    """Stands in a model's module, so other models of its kind come here too: batches of them go the `plain` way."""

    def __init__(self, plain: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.plain = plain

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        """(1, heads, T, width) each, cos and sin (1, T, width). Writes over q and k: nobody needs what they were."""
        if len(q) != 1:
            return self.plain(q, k, cos, sin, unsqueeze_dim)
        return Rotary.apply(q, k, cos, sin)


class Gate(torch.autograd.Function):
    """silu(gate) * up. Backward writes over both, which nobody reads after it: it can run once."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        gate_kernel[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, out, gate.numel(), BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        grad = grad.contiguous()
        gate_slope_kernel[(triton.cdiv(gate.numel(), BLOCK),)](gate, up, grad, gate.numel(), BLOCK)
        return gate, up


class Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return turned(q, cos, sin, 1.0), turned(k, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return turned(q, cos, sin, -1.0), turned(k, cos, sin, -1.0), None, None


def turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """`x` (1, heads, T, width) turned by the angle times `sign`, in its own memory when that is (T, heads, width)."""
    rows = x.transpose(1, 2).contiguous()
    _, length, heads, width = rows.shape
    turn_kernel[(length,)](rows, cos, sin, sign, heads, width // 2, triton.next_power_of_2(heads))
    return rows.transpose(1, 2)


if triton is not None:

    @triton.jit
    def gate_kernel(gate, up, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        g = tl.load(gate + at, inside).to(tl.float32)
        u = tl.load(up + at, inside).to(tl.float32)
        tl.store(out + at, g * tl.sigmoid(g) * u, inside)

    @triton.jit
    def gate_slope_kernel(gate, up, grad, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        g = tl.load(gate + at, inside).to(tl.float32)
        u = tl.load(up + at, inside).to(tl.float32)
        d = tl.load(grad + at, inside).to(tl.float32)
        s = tl.sigmoid(g)
        tl.store(gate + at, d * u * s * (1 + g * (1 - s)), inside)
        tl.store(up + at, d * g * s, inside)

    @triton.jit
    def turn_kernel(x, cos, sin, sign, heads, HALF: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
        token = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, HALF)
        head = tl.arange(0, HEADS)[:, None]
        c = tl.load(cos + token * 2 * HALF + column).to(tl.float32)[None, :]
        s = tl.load(sin + token * 2 * HALF + column).to(tl.float32)[None, :] * sign
        at = x + token * heads * 2 * HALF + head * 2 * HALF + column[None, :]
        inside = head < heads
        first = tl.load(at, inside).to(tl.float32)
        second = tl.load(at + HALF, inside).to(tl.float32)
        tl.store(at, first * c - second * s, inside)
        tl.store(at + HALF, second * c + first * s, inside)
