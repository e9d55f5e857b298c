"""Where the model lies and how many rows one forward takes. Pure rules; what is refused is refused with its reason."""

from __future__ import annotations

from collections.abc import Mapping

from remote_payload.contract import Exit
from remote_payload.script import ScriptFailed

# Environment of a launcher -> why training under it is refused. A LoRA has nothing worth sharding: its optimizer
# state is a few hundred megabytes, and each of these breaks adapters in its own way.
LAUNCHERS: dict[str, str] = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed mixes the types of frozen and trained weights and breaks LoRA gradients",
    "ACCELERATE_USE_FSDP": "FSDP flattens frozen and trained weights together and breaks LoRA gradients",
    "ACCELERATE_MIXED_PRECISION": "accelerate launch overrides precision and placement; start the stage plainly",
    "DEEPSPEED_CONFIG_FILE": "DeepSpeed mixes the types of frozen and trained weights and breaks LoRA gradients",
    "LOCAL_RANK": "a launcher started several processes; a model mapped over the cards is trained by one",
}

# Sequences in one forward, if the job does not say. 16 x 1024 tokens of a 7B fit an 80 GB card with checkpointing
# (34.6 GiB measured at 32); two slow cores gain nothing from more than 8.
MICRO_BATCH = {"cuda": 16, "cpu": 8}


def refuse_launchers(environment: Mapping[str, str]) -> None:
    """Raises ScriptFailed (31) when accelerate, DeepSpeed, FSDP or torchrun started this process."""
    for name, reason in LAUNCHERS.items():
        if environment.get(name, "false").lower() not in ("false", "no", ""):
            raise ScriptFailed(Exit.PLACEMENT, f"{name} is set: {reason}")


def device_map(placement: str, cards: int) -> str | dict[str, int] | None:
    """How transformers spreads the model over `cards`; None on a machine without any.

    Never None with several cards: the trainer would then replicate the model by DataParallel, whose replicas break.
    Raises ScriptFailed (31) for a placement this version does not train with.
    """
    if placement not in ("auto_map", "single", "auto"):
        raise ScriptFailed(Exit.PLACEMENT, f"placement {placement} is not supported by this version of the payload")
    if cards == 0:
        return None
    return {"": 0} if placement == "single" or cards == 1 else "auto"


def refuse_replicas(mapped: Mapping[str, object] | None, cards: int) -> None:
    """Raises ScriptFailed (31) when several cards are visible and the loaded model is not spread over them."""
    if cards > 1 and (mapped is None or len(set(mapped.values())) < 2):
        raise ScriptFailed(
            Exit.PLACEMENT,
            f"{cards} cards are visible but the model lies on one: the trainer would replicate it. "
            "Use placement: single, which hides the others",
        )


def micro_batch(batch: int, asked: int | None, device: str) -> int:
    """The largest divisor of the global batch that is at most `asked`, or the device's default."""
    limit = asked or MICRO_BATCH[device]
    return max(n for n in range(1, min(limit, batch) + 1) if batch % n == 0)
