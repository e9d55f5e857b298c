"""The plain way of training and the fast one. They train the same model; what differs is the time.

The plain way is TRL's own: padded rows, PEFT's layers, autocast. The fast way packs a step's sequences without padding
(packing, attention, head, steps), writes LoRA where it adds (fused_lora), has kernels for what lies between the
products (kernels) and keeps activations where they fit (recompute). What it cannot do is trained plainly, with the
reason in the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from remote_payload import attention, fused_lora, kernels, recompute
from remote_payload.contract import JobFile
from remote_payload.recompute import Room

CPU_TOKENS = 4096  # a forward; memory is no question for the models that a CPU trains

# Settings of a model's head that packed scoring does not know.
HEAD_SCALES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


@dataclass(frozen=True)
class Way:
    """How a stage is trained: packed, with what one forward may take and by which levers, or plainly, and why."""

    room: Room | None
    levers: tuple[str, ...] = ()
    why_plain: str | None = None


def quicken(model: PeftModel, job: JobFile, longest: int, remembered: int | None) -> Way:
    """Prepare `model` for packed steps; a forward takes `remembered` tokens if that is less than what fits.

    `longest` is the most tokens that one sample has, or one pair. A model that is to be trained plainly is untouched.
    """
    base = model.get_base_model()
    reason = why_plain(job, base)
    if reason:
        print(f"speed: plain, {reason}", flush=True)
        return Way(None, why_plain=reason)
    base.set_attn_implementation(attention.register())
    levers = ["packed rows", "one-pass head"]
    if job.lora.dropout == 0:
        fused_lora.fuse(model)
        levers.append("fused LoRA")
    if model.device.type == "cuda":
        levers += kernels.apply(base)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        room = recompute.room(base.config, torch.cuda.mem_get_info()[0], trained, longest)
    else:
        room = Room(CPU_TOKENS, recompute=False)
    asked = job.micro_batch_size * longest if job.micro_batch_size else room.tokens
    # A sample is never cut: where even the longest one alone ran out of memory, only recomputing takes less.
    too_long = remembered is not None and remembered < longest
    room = Room(min(room.tokens, asked, remembered or asked), room.recompute or too_long)
    print(
        f"speed: fast ({', '.join(levers)}); at most {room.tokens} tokens a forward, "
        f"activations {'recomputed' if room.recompute else 'kept'}",
        flush=True,
    )
    return Way(room, tuple(levers))


def why_plain(job: JobFile, base: Any) -> str | None:
    """The reason to train plainly, None when there is none."""
    config = base.config
    if job.speed == "plain":
        return "as asked"
    if len(set(getattr(base, "hf_device_map", {}).values())) > 1:
        return "the model lies on several cards"
    if not getattr(base, "_supports_attention_backend", False):
        return f"{config.model_type} brings its own attention"
    if base.get_output_embeddings().bias is not None or any(getattr(config, name, None) for name in HEAD_SCALES):
        return f"{config.model_type} scales its logits"
    return None
