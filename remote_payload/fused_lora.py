"""LoRA layers as products that write where they add, instead of products, copies, scaling and sums.

PEFT computes `W x + s B (A x)` as five passes over the output, and casts what goes in to the adapter's fp32 and back.
Here the adapter's part is written first and the frozen product is added to it by the product itself; backward alike.
Layers that read the same input read it once, and their gradients for it are added the same way. The adapter stays fp32:
it is rounded for the products only, and its gradient is summed and kept in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor

# Layers of one parent that its forward calls in this order with one input.
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class LoraProducts(torch.autograd.Function):
    """x (..., in), scales, then of each layer: weight (out, in), bias (out) or None, a (r, in), b (out, r).

    Gives (..., out) of each layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: tuple[float, ...], *layers: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases, down, up = (layers[i::4] for i in range(4))
        rows = x.reshape(-1, x.shape[-1])
        a = torch.cat([one.to(x.dtype) for one in down])
        bs = [(one * scale).to(x.dtype) for one, scale in zip(up, scales, strict=True)]
        ctx.ranks = [len(one) for one in down]
        low = rows @ a.t()
        outs = []
        for weight, bias, b, part in zip(weights, biases, bs, low.split(ctx.ranks, 1), strict=True):
            out = part @ b.t() if bias is None else torch.addmm(bias, part, b.t())
            outs.append(out.addmm_(rows, weight.t()).view(*x.shape[:-1], len(weight)))
        ctx.save_for_backward(rows, a, low, *weights, *bs)
        ctx.scales, ctx.shape = scales, x.shape
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, low, *rest = ctx.saved_tensors
        weights, bs = rest[: len(grads)], rest[len(grads) :]
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        low_grad = torch.cat([grad @ b for grad, b in zip(flat, bs, strict=True)], 1)
        down = product(low_grad.t(), rows).split(ctx.ranks)
        lows = low.split(ctx.ranks, 1)
        up = [product(grad.t(), part).mul_(s) for grad, part, s in zip(flat, lows, ctx.scales, strict=True)]
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = low_grad @ a
            for grad, weight in zip(flat, weights, strict=True):
                x_grad.addmm_(grad, weight)
            x_grad = x_grad.view(ctx.shape)
        return x_grad, None, *(grad for pair in zip(down, up, strict=True) for grad in (None, None, *pair))


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, in fp32 however few bits the factors have."""
    if left.is_cuda and left.dtype is not torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class FusedLinear(Linear):  # type: ignore[misc]  # peft is untyped
    """PEFT's layer with one active adapter. The first of its group computes the others' outputs too, which wait there
    until they are asked for; a layer that is asked about another input than the first computes its own."""

    followers: list[FusedLinear]
    waiting: tuple[Tensor, Tensor] | None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.base_layer(x)
        waiting, self.waiting = self.waiting, None
        if waiting is not None and waiting[0] is x:
            return waiting[1]
        layers = [self, *self.followers]
        (name,) = self.active_adapters
        weights = [
            weight
            for layer in layers
            for weight in (
                layer.base_layer.weight, layer.base_layer.bias, layer.lora_A[name].weight, layer.lora_B[name].weight
            )
        ]  # fmt: skip
        out, *others = LoraProducts.apply(x, tuple(layer.scaling[name] for layer in layers), *weights)
        for layer, other in zip(self.followers, others, strict=True):
            layer.waiting = (x, other)
        return out


def fuse(model: Any) -> None:
    """Make every LoRA layer of `model` a FusedLinear, for an adapter without dropout."""
    for layer in [module for module in model.modules() if type(module) is Linear]:
        layer.__class__ = FusedLinear
        layer.followers, layer.waiting = [], None
    for parent in model.modules():
        for names in TOGETHER:
            group = [getattr(parent, name, None) for name in names]
            if all(isinstance(layer, FusedLinear) for layer in group):
                group[0].followers = group[1:]
