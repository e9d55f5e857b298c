"""SQLite's method: run the happy path, count its boundaries, and let each of them end in each way.

After every such run the sky is clear, so it must come to the same end: the same job states, no machine left, the same
bytes under the same names (I24). `python -m tests.simulation.full --sweep` does all, `--step-pairs` every pair of steps
that did happen and were not heard of, `--pairs N` draws from all the pairs there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from random import Random

from .boundaries import ENDINGS
from .simulation import Result, Simulation

SEED = 1
# A file operation has no moment after it that is not before the next boundary; and no answer that could be lost.
OF_A_FILE = ("crash before", "error before")
UNHEARD = ("crash after", "effect, then error")


@dataclass(frozen=True)
class Case:
    """Which boundary of the happy path ends how."""

    endings: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        return ", ".join(f"#{number} {ending}" for number, ending in self.endings)


def happy_path(*, dpo: bool = False) -> Result:
    """What everything is compared with."""
    return Simulation(SEED, dpo=dpo).run()


def singles(happy: Result) -> Iterator[Case]:
    for number, (kind, _) in enumerate(happy.boundaries):
        for ending in OF_A_FILE if kind == "file" else ENDINGS:
            yield Case(((number, ending),))


def pairs(happy: Result, count: int, seed: int) -> list[Case]:
    """`count` of all pairs, drawn by `seed`: all of them are some 300,000 on the short job."""
    chance, every = Random(seed), list(singles(happy))
    drawn = (sorted(chance.sample(every, 2), key=lambda case: case.endings) for _ in range(count))
    return [Case((*first.endings, *second.endings)) for first, second in drawn]


def step_pairs(happy: Result) -> Iterator[Case]:
    """All pairs of steps: the first commit of each kind of event and the first of each call, done and not heard of."""
    steps: dict[tuple[str, str], int] = {}
    for number, (kind, what) in enumerate(happy.boundaries):
        if kind != "file" and what != "row":
            steps.setdefault((kind, what), number)
    endings = [(number, ending) for number in steps.values() for ending in UNHEARD]
    for first, second in combinations(endings, 2):
        if first[0] != second[0]:
            yield Case((first, second))


def objections(case: Case, happy: Result, *, dpo: bool = False) -> list[str]:
    """What is wrong with the run of `case`; empty when it came to the happy end."""
    found = Simulation(SEED, plan=dict(case.endings), dpo=dpo).run()
    wrong = [str(violation) for violation in found.violations]
    if found.ledger != happy.ledger:
        wrong.append(f"I24: {found.ledger} instead of {happy.ledger}")
    return wrong
