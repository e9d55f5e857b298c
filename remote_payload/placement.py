"""Where the model lies and how many rows one forward takes: rules, and what `place` decided by them for this attempt.

What is refused is refused with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from remote_payload import contract
from remote_payload.contract import Exit, JobFile
from remote_payload.layout import Layout
from remote_payload.script import ScriptFailed

# Environment of a launcher -> why training under it is refused. A LoRA has nothing worth sharding: its optimizer
# state is a few hundred megabytes, and each of these breaks adapters in its own way.
LAUNCHERS: dict[str, str] = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed mixes the types of frozen and trained weights and breaks LoRA gradients",
    "ACCELERATE_USE_FSDP": "FSDP flattens frozen and trained weights together and breaks LoRA gradients",
    "ACCELERATE_MIXED_PRECISION": "accelerate launch overrides precision and placement; start the stage plainly",
    "DEEPSPEED_CONFIG_FILE": "DeepSpeed mixes the types of frozen and trained weights and breaks LoRA gradients",
    "LOCAL_RANK": "a launcher started several processes, but this placement trains in one",
}

# Sequences in one forward, if the job does not say. 16 x 1024 tokens of a 7B fit an 80 GB card with checkpointing
# (34.6 GiB measured at 32); two slow cores gain nothing from more than 8.
MICRO_BATCH = {"cuda": 16, "cpu": 8}

# Of a card's memory, beside the weights: a tenth for adapter and optimizer, bytes for context and activations.
ROOM = 1.1
CARD_BASE = 4 << 30


@dataclass(frozen=True)
class Placed:
    """How the training stages of one attempt run: decided once, by `place`, and the same for every resume of it."""

    mode: str  # auto_map, single or ddp
    processes: int = 1  # a rank for each card with ddp
    why: str = "as asked"
    environment: dict[str, str] = field(default_factory=dict)  # for the stages, beside the chain's own


def decided(layout: Layout, job: JobFile) -> Placed | None:
    """What holds for this attempt, None while `place` has yet to look at the machine."""
    if job.placement not in ("ddp", "auto"):
        return Placed(job.placement)
    if layout.placement.exists():
        stored = json.loads(layout.placement.read_text())
        if stored.pop("attempt") == job.attempt:
            return Placed(**stored)
    return None


def decide(layout: Layout, job: JobFile, placed: Placed) -> None:
    """Store it for every process of this attempt."""
    contract.write_whole(layout.placement, json.dumps({"attempt": job.attempt, **asdict(placed)}))


def fits(weights: int, cards: Sequence[int]) -> bool:
    """Whether `weights` bytes of a model can be trained on every one of `cards` (bytes of memory); so without cards."""
    return all(weights * ROOM + CARD_BASE <= memory for memory in cards)


def without_trial(asked: str, processes: int, batch: int, fits: bool) -> Placed | None:
    """What `ddp` or `auto` comes to where that needs no trial, else None.

    Raises ScriptFailed for a `ddp` that cannot be had: 10 when the batch cannot be shared, 31 when memory is short.
    """
    if not fits:
        if asked == "ddp":
            raise ScriptFailed(Exit.PLACEMENT, "the model does not fit on one card, as ddp needs it; use auto_map")
        return Placed("auto_map", why="the model does not fit on one card")
    if processes == 1:
        return Placed("single", why="one card: every placement is the same")
    if asked == "ddp":
        share(batch, processes)
    elif batch % processes:
        return Placed("single", why=f"batch_size {batch} cannot be shared by {processes} cards")
    return None


def refused(asked: str, objections: str) -> Placed:
    """When the trial spoke against ranks: `auto` trains on one card. Raises ScriptFailed (31) for `ddp`."""
    if asked == "ddp":
        raise ScriptFailed(Exit.PLACEMENT, f"ddp does not train here as one process does: {objections}")
    return Placed("single", why=f"ddp does not train here as one process does: {objections}")


def refuse_launchers(environment: Mapping[str, str], mode: str) -> None:
    """Raises ScriptFailed (31) when accelerate, DeepSpeed or FSDP started this process, or ranks a stage without."""
    for name, reason in LAUNCHERS.items():
        if mode == "ddp" and name == "LOCAL_RANK":
            continue
        if environment.get(name, "false").lower() not in ("false", "no", ""):
            raise ScriptFailed(Exit.PLACEMENT, f"{name} is set: {reason}")


def device_map(mode: str, cards: int, rank: int = 0) -> str | dict[str, int] | None:
    """How transformers lays the model on `cards`; None on a machine without any.

    Never None with several cards: the trainer would then replicate the model by DataParallel, whose replicas break.
    """
    if cards == 0:
        return None
    if mode == "ddp":
        return {"": rank}
    return {"": 0} if mode == "single" or cards == 1 else "auto"


def refuse_replicas(mapped: Mapping[str, object] | None, cards: int) -> None:
    """Raises ScriptFailed (31) when several cards are visible and the loaded model is not spread over them."""
    if cards > 1 and (mapped is None or len(set(mapped.values())) < 2):
        raise ScriptFailed(
            Exit.PLACEMENT,
            f"{cards} cards are visible but the model lies on one: the trainer would replicate it. "
            "Use placement: single, which hides the others",
        )


def share(batch: int, processes: int) -> int:
    """The rows of one step that each process takes. Raises ScriptFailed (10) when they cannot be shared evenly."""
    if batch % processes:
        raise ScriptFailed(
            Exit.BAD_CONFIG,
            f"batch_size {batch} cannot be shared by {processes} cards; choose a multiple of {processes}",
        )
    return batch // processes


def micro_batch(batch: int, asked: int | None, device: str) -> int:
    """The largest divisor of one process's batch that is at most `asked`, or the device's default."""
    limit = asked or MICRO_BATCH[device]
    return max(n for n in range(1, min(limit, batch) + 1) if batch % n == 0)
