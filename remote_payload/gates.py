"""When a training is ended because its numbers say that it goes wrong: one table, and the arithmetic of its values.

Pure. The callback measures what the steps log, `held_out` what the held-out rows say; both ask `judge`. A gate that has
too little to go by says nothing: a small data set must not be failed by noise. NaN passes no gate.
"""

from __future__ import annotations

import math
import operator
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from remote_payload.contract import Exit, Stage

STREAK = 20  # logs in a row that must be high before the loss counts as rising
SMALL_NORM = 0.01  # medians below count as this, so that a norm below 1, which is not even clipped, is no explosion
LN_2 = math.log(2)
# Median losses below these count as these: an SFT that knows its rows by heart swings by chance, and a DPO loss below
# ln 2 is better than no training.
FLOORS = {Stage.SFT: 0.01, Stage.DPO: LN_2}

at_most, at_least, above = operator.le, operator.ge, operator.gt
SFT, DPO, BOTH = (Stage.SFT,), (Stage.DPO,), (Stage.SFT, Stage.DPO)
LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Gate:
    """One row: the value must be `rule` `limit`. `least` of `unit` is what it takes for the value to mean anything."""

    name: str
    stages: tuple[Stage, ...]
    when: str
    value: str
    rule: Callable[[float, float], bool]
    limit: float
    least: int
    unit: str
    code: Exit


STEPS, PAIRS, ROWS = "steps", "pairs", "held-out rows"

GATES = {
    gate.name: gate
    for gate in (
        Gate("finite", BOTH, "step", "loss plus gradient norm", at_most, LARGEST, 1, STEPS, Exit.DIVERGED),
        Gate("loss_not_zero", BOTH, "step", "the loss", above, 0.0, 1, STEPS, Exit.DIVERGED),  # as a filtered NaN is
        Gate("loss_rise", BOTH, "step", "the least of 20 losses in medians", at_most, 1.5, 40, STEPS, Exit.DIVERGED),
        Gate("grad_norm", BOTH, "step", "the gradient norm in medians", at_most, 100.0, 20, STEPS, Exit.DIVERGED),
        Gate("first_dpo_loss", DPO, "first step", "|loss - ln 2|", at_most, 0.001, 1, STEPS, Exit.DPO_GATE),
        Gate("reward_accuracy", DPO, "after", "share of pairs right", at_least, 0.6, 200, PAIRS, Exit.DPO_GATE),
        Gate("reward_margin", DPO, "after", "the mean margin", above, 0.0, 200, PAIRS, Exit.DPO_GATE),
        Gate("chosen_fall", DPO, "after", "log-probability lost, share", at_most, 0.3, 200, PAIRS, Exit.DPO_GATE),
        Gate("loss_fall", SFT, "after", "fall of the loss, share", at_least, 0.0, 200, STEPS, Exit.NOT_LEARNING),
        Gate("held_out_nll", SFT, "after", "fall in nats a token", at_least, 0.02, 16, ROWS, Exit.NOT_LEARNING),
        Gate("sft_perplexity", DPO, "after", "rise of perplexity, share", at_most, 0.05, 16, ROWS, Exit.DPO_GATE),
    )
}


@dataclass(frozen=True)
class Verdict:
    """What one gate said of one value; as an event it is `gate` with these fields."""

    name: str
    ok: bool
    value: float
    limit: float

    def __str__(self) -> str:
        words = {at_most: "at most", at_least: "at least", above: "more than"}
        gate = GATES[self.name]
        return f"gate {self.name}: {gate.value} is {self.value:.6g}, {words[gate.rule]} {self.limit:g} is required"


def judge(name: str, value: float, count: int, limits: Mapping[str, float]) -> Verdict | None:
    """The verdict over `value`, which `count` units gave; None where they are too few. `limits`: the job's own."""
    gate = GATES[name]
    if count < gate.least:
        return None
    limit = limits.get(name, gate.limit)
    return Verdict(name, gate.rule(value, limit), value, limit)


# What the values are made of.


def loss_rise(losses: Sequence[float], floor: float) -> float:
    """How far even the least of the last STREAK losses lies over the median of those before; 1 where there are none."""
    before = losses[:-STREAK]
    return min(losses[-STREAK:]) / max(statistics.median(before), floor) if before else 1.0


def norm_rise(norms: Sequence[float]) -> float:
    """The last gradient norm in medians of those before; 1 where there are none."""
    before = norms[:-1]
    return norms[-1] / max(statistics.median(before), SMALL_NORM) if before else 1.0


def loss_fall(losses: Sequence[float], floor: float) -> float:
    """The share by which the median loss of the last tenth of the steps lies below that of the first tenth."""
    tenth = max(1, len(losses) // 10)
    first, last = (max(statistics.median(part), floor) for part in (losses[:tenth], losses[-tenth:]))
    return 1 - last / first


def chosen_fall(reward: float, logps: float, beta: float) -> float:
    """The share of the reference's log-probability that the chosen answers lost, from one step's mean figures.

    The reward is beta times (policy - reference), so the reference is known without being logged; both are negative.
    """
    gain = reward / beta
    return gain / (logps - gain)
