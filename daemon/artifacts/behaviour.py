"""L5: the GGUF behaves like the model that was trained, and not like the base model.

The file is loaded in a fenced child process and asked for its distributions over the box's reference answers. Greedy
text is no measure (a correct Q8_0 leaves the original's text after some tokens), so it is shown, not judged. What is
judged: the same tokens from the same texts, divergence and top-1 agreement, and distance from the base model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from daemon import platform
from daemon.artifacts import child
from daemon.artifacts.divergence import distance, divergence
from daemon.artifacts.levels import BEHAVIOUR, Level, failed, not_run, passed
from daemon.artifacts.reference import Distribution, Reference
from remote_payload.contract import Quality

# Mean divergence in nats that no honest file of its kind exceeds. A model of 135M weights, the worst case, gave: Q8_0
# 0.005, Q6_K 0.012, Q4_K_M 0.058, Q5_K_M 0.080; its mildest gross corruptions 0.03 to 16.
CAPS = {"F16": 0.01, "BF16": 0.01, "Q8_0": 0.02, "Q6_K": 0.05, "Q5_K_M": 0.3, "Q4_K_M": 0.3}
STRICTEST = min(CAPS.values())  # for a kind of file we have no number for
OVER_BOX = 3.0  # times the divergence the box measured for the same file
NOISE = 0.002  # nats; below this, processors and precisions differ by themselves
TOP1_SLACK = 0.03  # share of positions; never less than two positions
NEARLY = math.log(2)  # nats by which an end may be less likely than the choice: there quantisation decides
UNSEEN = 1e-6  # nats; what rounding leaves of no difference at all
FROM_BASE = 3.0  # the base model's divergence from the file must be so many times the tuned model's; where training
# moved the model by less than the quantisation does, the file must not lean towards the base model instead:
SURE = 3.0  # standard errors of the difference between the two divergences, position by position
MIN_POSITIONS = 8
MEMORY = 1.2  # times the file: weights, context, logits; with less the weights stream from the disk
LEAST = (1_500_000_000, 0.2)  # bytes, and times the file: context and logits, and some weights to work on
GREEDY_TOKENS = 48  # each reads all weights once, so none where they stream from the disk


@dataclass(frozen=True)
class Behaviour:
    """L5's verdict and the text the model wrote, for a person to read."""

    level: Level
    sample: str = ""


async def check(path: Path, size: int, reference: Reference, quant: str, box: Quality | None) -> Behaviour:
    """L5 for one GGUF of `size` bytes. `box` is what the rented machine measured for it, if it did."""
    if reference.positions < MIN_POSITIONS:
        return Behaviour(failed(BEHAVIOUR, f"only {reference.positions} positions to judge by"))
    if package := child.missing():
        return Behaviour(not_run(BEHAVIOUR, f"{package} is not installed"))
    available = platform.memory_available()
    if available < least_memory(size):
        needed = f"needs {least_memory(size):.3g} bytes of memory, {available:.3g} are free"
        return Behaviour(not_run(BEHAVIOUR, needed))
    greedy = GREEDY_TOKENS if available >= MEMORY * size else 0
    try:
        reply = await child.ask(request(path, reference, greedy), size)
    except child.ChildEnded as error:
        return Behaviour(not_run(BEHAVIOUR, str(error)))
    except child.ChildFailed as error:
        return Behaviour(failed(BEHAVIOUR, str(error)))
    level = judge(reference, reply, quant, box)
    if not greedy:
        skipped = f"no text was generated: {available:.3g} bytes of memory are free for a file of {size:.3g}"
        level = replace(level, warnings=(*level.warnings, skipped))
    return Behaviour(level, reply.greedy_text)


def least_memory(size: int) -> int:
    """Bytes that must be free to judge a file of `size` bytes at all."""
    beside, share = LEAST
    return min(round(MEMORY * size), round(beside + share * size))


def request(path: Path, reference: Reference, greedy: int = GREEDY_TOKENS) -> child.Request:
    """Everything L5 wants to know of the file, as one question."""
    asks = tuple(
        child.Ask(
            prompt.ids,
            prompt.start,
            tuple(
                (tuple(token for token, _ in tuned.top), tuple(token for token, _ in base.top))
                for tuned, base in zip(prompt.tuned, prompt.base, strict=True)
            ),
        )
        for prompt in reference.prompts
    )
    first = reference.prompts[0]
    return child.Request(
        gguf=str(path),
        texts=tuple(text for text, _ in _splits(reference)),
        ends=tuple(sorted(_last(reference))),
        prompts=asks,
        greedy_ids=first.ids[: first.start],
        greedy_tokens=greedy,
        threads=child.threads(),
    )


def judge(reference: Reference, reply: child.Reply, quant: str, box: Quality | None) -> Level:
    """Hold the child's answers against the reference. Pure; the gates in order of how much they explain."""
    if reply.vocabulary != reference.vocabulary:
        return failed(BEHAVIOUR, f"{reply.vocabulary} tokens, the trained model has {reference.vocabulary}")
    for (text, ids), found in zip(_splits(reference), reply.tokens, strict=True):
        if ids != found:
            return failed(BEHAVIOUR, f"splits {text[:40]!r} into other tokens than the trained model")
    sound = [position for position in chain.from_iterable(reply.prompts) if position is not None]
    if len(sound) < reference.positions:
        return failed(BEHAVIOUR, f"logits that are not numbers at {reference.positions - len(sound)} positions")

    stops = {token for token, stop in zip(sorted(_last(reference)), reply.stops, strict=True) if stop}
    if reference.end is not None and reference.end not in stops:
        return failed(
            BEHAVIOUR, f"token {reference.end}, which ends the model's answers, ends none here: it would run on"
        )
    ended = [
        _ends(prompt.tuned[-1], positions[-1], stops)
        for prompt, positions in zip(reference.prompts, reply.prompts, strict=True)
        if prompt.ids[-1] in stops and positions[-1] is not None
    ]

    measured = _measure(reference, sound)
    kl_limit = CAPS.get(quant, STRICTEST)
    if box is not None:
        kl_limit = min(kl_limit, max(OVER_BOX * box.kl_mean, NOISE))
    top1_limit = None if box is None else box.top1 - max(TOP1_SLACK, 2 / len(sound))
    numbers = measured | {
        "kl_limit": kl_limit,
        "top1_limit": top1_limit,
        "box_kl_mean": box.kl_mean if box else None,
        "answers_ended": len(ended),
        "ended_here": sum(ended),
        "greedy_ended": reply.greedy_ended,
        "fence": list(reply.fence),
        "load_s": round(reply.load_s, 2),
        "score_s": round(reply.score_s, 2),
    }
    kl, top1 = measured["kl_mean"], measured["top1"]
    from_base, effect, lean = measured["base_kl_mean"], measured["adapter_effect"], measured["lean"]
    if kl > kl_limit:
        return failed(BEHAVIOUR, f"{kl:.4f} nats from the trained model, {kl_limit:.4f} allowed", numbers)
    if top1_limit is not None and top1 < top1_limit:
        return failed(BEHAVIOUR, f"agrees on {top1:.1%} of the tokens, {top1_limit:.1%} required", numbers)
    if ended and not any(ended):
        return failed(BEHAVIOUR, f"none of {len(ended)} answers ends where the trained model ends it", numbers)
    untried = () if ended or reply.greedy_ended else ("no answer came to its end, so stopping was not seen",)
    if from_base > max(FROM_BASE * kl, UNSEEN) or (effect <= kl_limit and lean >= SURE):
        return passed(BEHAVIOUR, numbers, untried)
    if effect > kl_limit or lean <= -SURE:
        return failed(BEHAVIOUR, f"as near to the base model ({from_base:.4f} nats) as to the trained one", numbers)
    warning = f"adapter effect not measurable at {quant}: training moved the model by {effect:.5f} nats only"
    return passed(BEHAVIOUR, numbers, (warning, *untried))


def _ends(asked: Distribution, found: child.Position, stops: set[int]) -> bool:
    """Whether the file ends its answer here, or would but for a hair."""
    scores = found.scores[0]
    logs = dict(zip((token for token, _ in asked.top), scores.logs, strict=True))
    least = logs.get(found.choice, scores.tail) - NEARLY
    return found.choice in stops or any(logs.get(stop, -math.inf) >= least for stop in stops)


def _last(reference: Reference) -> set[int]:
    """Tokens that may end an answer: the tokenizer's own, and the last one of each reference answer."""
    own = set() if reference.end is None else {reference.end}
    return own | {prompt.ids[-1] for prompt in reference.prompts}


def _splits(reference: Reference) -> list[tuple[str, tuple[int, ...]]]:
    """Texts and the ids they must give: the probes and the prompts themselves."""
    return [*reference.probes, *((prompt.text, prompt.ids[: prompt.start]) for prompt in reference.prompts)]


def _measure(reference: Reference, found: Sequence[child.Position]) -> dict[str, Any]:
    """Divergences in nats and shares, over all positions."""
    tuned = list(chain.from_iterable(prompt.tuned for prompt in reference.prompts))
    base = list(chain.from_iterable(prompt.base for prompt in reference.prompts))
    kl, base_kl = [], []
    for ours, theirs, position in zip(tuned, base, found, strict=True):
        of_tuned, of_base = position.scores
        kl.append(divergence(ours, of_tuned.logs, of_tuned.tail))
        base_kl.append(divergence(theirs, of_base.logs, of_base.tail))
    ordered = sorted(kl)
    agreeing = sum(ours.top[0][0] == position.choice for ours, position in zip(tuned, found, strict=True))
    return {
        "positions": len(kl),
        "kl_mean": _mean(kl),
        "kl_p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 6),
        "kl_max": round(ordered[-1], 6),
        "top1": round(agreeing / len(kl), 4),
        "base_kl_mean": _mean(base_kl),
        "lean": _standard_errors([b - t for b, t in zip(base_kl, kl, strict=True)]),
        "adapter_effect": _mean([distance(theirs, ours) for ours, theirs in zip(tuned, base, strict=True)]),
    }


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 6)


def _standard_errors(values: Sequence[float]) -> float:
    """The mean in units of its own uncertainty; positive: nearer to the tuned model than to the base model."""
    uncertainty = statistics.stdev(values) / math.sqrt(len(values))
    return round(statistics.fmean(values) / uncertainty, 2) if uncertainty else 0.0
