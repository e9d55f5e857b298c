"""How far two models' next-token distributions are apart: Kullback-Leibler divergence in nats.

Only the reference's 64 likeliest tokens are known one by one; everything else is one bucket, the tail. That gives a
lower bound of the true divergence, and the same number on the box and here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from daemon.artifacts.reference import Distribution

FLOOR = -100.0  # natural log of a probability too small to matter


def divergence(reference: Distribution, logs: Sequence[float], tail: float) -> float:
    """KL(reference || local) at one position; `logs` are the local model's, for the reference's tokens in order."""
    terms = [math.exp(p) * (p - q) for (_, p), q in zip(reference.top, logs, strict=True)]
    return math.fsum([*terms, math.exp(reference.tail) * (reference.tail - tail)])


def distance(one: Distribution, other: Distribution) -> float:
    """KL(one || other) when both know only their own likeliest tokens: those both know, and one bucket for the rest."""
    theirs = dict(other.top)
    shared = [(p, theirs[token]) for token, p in one.top if token in theirs]
    p_rest, q_rest = _rest([p for p, _ in shared]), _rest([q for _, q in shared])
    terms = [math.exp(p) * (p - q) for p, q in shared]
    return math.fsum([*terms, math.exp(p_rest) * (p_rest - q_rest)])


def _rest(logs: list[float]) -> float:
    left = 1.0 - math.fsum(math.exp(log) for log in logs)
    return math.log(left) if left > math.exp(FLOOR) else FLOOR
