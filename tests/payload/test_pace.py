"""When a stage will be over: right within a tenth once a twentieth of its steps is done."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Prepared, Stage
from remote_payload.pace import Pace, planned_tokens

WARM_UP_S = 25.0


def steps(count: int, batch: int, draw: random.Random) -> Iterator[tuple[float, int]]:
    """(seconds, tokens) at the end of each step: a slow start, then a fixed cost, one by tokens with noise, and saves.

    Rows have 64 to 1024 tokens, most of them few.
    """
    now, tokens = WARM_UP_S, 0
    for step in range(count):
        trained = sum(min(1024, max(64, round(draw.lognormvariate(5.9, 0.6)))) for _ in range(batch))
        tokens += trained
        now += 0.05 + trained / 14_000 * draw.uniform(0.95, 1.05) + (2.0 if step % 100 == 99 else 0.0)
        yield now, tokens


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("count", "batch"), [(479, 32), (80, 32)])
def test_right_within_a_tenth(count: int, batch: int, seed: int) -> None:
    """At a twentieth of the steps the time left is known to a tenth, however few rows that has seen."""
    seen = list(steps(count, batch, random.Random(seed)))
    pace = Pace(seen[-1][1])

    told = [pace.eta_s(at_s, tokens) for at_s, tokens in seen]

    assert told[0] is None
    at = count // 20
    assert told[at] == pytest.approx(seen[-1][0] - seen[at][0], rel=0.1)
    assert told[-1] == 0


@pytest.mark.parametrize(
    ("rows", "steps", "expected"),
    [(40, 10, 1000.0), (40, 20, 2000.0), (40, 4, 400.0), (41, 11, 1025.0), (41, 22, 2050.0), (41, 12, 1125.0)],
)
def test_planned_tokens(rows: int, steps: int, expected: float) -> None:
    """Every epoch reads all tokens, its last step may be short; one that is cut ends after so many average rows."""
    job = JobFile("j", 1, "n", ModelSource("m"), [], Integration("T", rows, 0), Lora(), ["Q8_0"], batch_size=4)
    prepared = Prepared(True, "line", rows, 0, kept={"SFT": rows}, steps={"SFT": steps}, tokens={"SFT": 25 * rows})

    assert planned_tokens(prepared, job, Stage.SFT) == pytest.approx(expected)
