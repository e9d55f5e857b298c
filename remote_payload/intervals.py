"""How sure a difference between two models on the same rows is: the paired bootstrap, with a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from remote_payload.contract import Gain

RESAMPLES = 2000
SEED = 42
INTERVAL = (2.5, 97.5)  # percent


def gain(differences: Sequence[float], weights: Sequence[float]) -> Gain:
    """sum(differences) / sum(weights) over the rows, with its 95 % interval: rows are drawn, with all of their tokens.

    Both have one entry a row, and at least one. The same numbers give the same interval.
    """
    over, under = np.asarray(differences, dtype=float), np.asarray(weights, dtype=float)
    draw = np.random.default_rng(SEED)
    counts = draw.multinomial(len(over), np.full(len(over), 1 / len(over)), size=RESAMPLES)  # how often each row came
    low, high = np.percentile((counts @ over) / (counts @ under), INTERVAL)
    return Gain(float(over.sum() / under.sum()), float(low), float(high))
