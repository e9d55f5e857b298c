"""Log-probabilities of the trained tokens, straight from the hidden states, with their gradient made in the same pass.

TRL's head never holds all logits either, but multiplies by the vocabulary twice: for the loss, and again for the
gradient. The gradient of one token's log-probability needs nothing that is not known in the forward pass, and a loss
only scales it; so it is made there and multiplied by what comes back. A third of the head's products less.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from trl.kernels import chunked_logprob as tiles
from trl.trainer.utils import FusedCausalLMOutput

TOKENS = 4096  # whose logits exist at a time: 1.2 GB in bf16 for a vocabulary of 152,000
BLOCK = 1024  # of the vocabulary, in one turn of a kernel; as TRL has it


class LogProbs(torch.autograd.Function):
    """(N, H) hidden states, (V, H) weight, (N,) tokens -> per token: log-probability, entropy, mean logit, is it top.

    Only the log-probability has a gradient, and only with respect to the hidden states: the head is frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        count, vocabulary = len(hidden), len(weight)
        wanted = ctx.needs_input_grad[0]
        ctx.set_materialize_grads(False)
        top, before = (hidden.new_full((count,), -torch.inf, dtype=torch.float32) for _ in range(2))
        total, weighted, squares, logits, target = (hidden.new_zeros(count, dtype=torch.float32) for _ in range(5))
        slope = torch.empty_like(hidden) if wanted else None
        buffer = hidden.new_empty((min(count, TOKENS), vocabulary))
        for start in range(0, count, TOKENS):
            part = slice(start, min(start + TOKENS, count))
            tile = buffer[: part.stop - start]
            torch.mm(hidden[part], weight.t(), out=tile)
            sums = (top[part], total[part], weighted[part], squares[part], logits[part], before[part], target[part])
            fold(tile, tokens[part], sums)
            if slope is not None:
                turn_into_slope(tile, tokens[part], top[part] + total[part].log())
                torch.mm(tile, weight, out=slope[part])
        normaliser = top + total.log()
        ctx.save_for_backward(slope)
        entropy, mean, is_top = normaliser - weighted / total, logits / vocabulary, (target >= top) & (target > before)
        ctx.mark_non_differentiable(entropy, mean, is_top)
        return target - normaliser, entropy, mean, is_top

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None].to(slope.dtype), None, None


SCALES = {"logit_scale": 1.0, "softcap": 1.0, "inv_t": 1.0, "HAS_SOFTCAP": False}  # the plain softmax


def fold(tile: Tensor, tokens: Tensor, sums: tuple[Tensor, ...]) -> None:
    """Sum the logits of `tile` up into `sums`, one pass."""
    kernel = tiles._forward_kernel[(len(tile),)] if tiles._use_triton(tile.device) else tiles._forward_tile
    top, total, weighted, squares, logits, before, target = sums
    kernel(
        tile, tile.stride(0), tokens, top, total, weighted, squares, logits, before, target, 0, tile.shape[1],
        HAS_ENTROPY=True, HAS_LOG_SUM_SQ_PROBS=False, HAS_MEAN_LOGITS=True, HAS_IS_TOP1=True,
        BLOCK_SIZE=BLOCK, **SCALES,
    )  # fmt: skip


def turn_into_slope(tile: Tensor, tokens: Tensor, normaliser: Tensor) -> None:
    """Overwrite the logits with the gradient of each token's log-probability."""
    grid = (len(tile), -(-tile.shape[1] // BLOCK))
    kernel = tiles._backward_kernel[grid] if tiles._use_triton(tile.device) else tiles._backward_tile
    ones = torch.ones_like(normaliser)
    kernel(
        tile, tile.stride(0), tokens, normaliser, normaliser, ones, ones, 0, tile.shape[1],
        HAS_LOGPROB_GRAD=True, HAS_ENTROPY_GRAD=False, BLOCK_SIZE=BLOCK, **SCALES,
    )  # fmt: skip


def add_packed_head(model: Any) -> None:
    """Give `model` a forward that takes `packed` (packing.row) and answers as TRL's fused head does, in the shape of
    `labels` less one column. Replaces TRL's, which the trainer's constructor has put there."""

    def forward(self: Any, *_: Any, packed: dict[str, Any], labels: Tensor, **__: Any) -> FusedCausalLMOutput:
        layout = dict(packed)
        places, tokens, results = (layout.pop(f"scored_{name}") for name in ("places", "tokens", "results"))
        hidden = self.base_model(**layout, use_cache=False).last_hidden_state[0]
        scores = LogProbs.apply(hidden[places], self.get_output_embeddings().weight, tokens)
        lines, columns = labels.shape[0], labels.shape[1] - 1
        log_probs, entropy, mean_logits, is_top1, mask = (
            score.new_zeros(lines * columns).index_copy(0, results, score).view(lines, columns)
            for score in (*scores, torch.ones_like(scores[3]))
        )
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1, label_mask=mask
        )

    model.forward = types.MethodType(forward, model)
