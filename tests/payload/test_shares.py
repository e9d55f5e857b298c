"""Who takes which sequences of a step: the steps stay what they are, and no rank has much more than another."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from remote_payload.shares import FairShares, shares

BATCH = 32


class Order:
    """Draws rows in the order of their number, from another first one each epoch."""

    def __init__(self, rows: int) -> None:
        self.rows, self.epoch = rows, 0

    def __iter__(self):
        return iter([(i + self.epoch) % self.rows for i in range(self.rows)])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def lengths(rows: int) -> list[int]:
    rng = random.Random(0)
    return [int(min(1024, max(64, rng.lognormvariate(5.9, 0.6)))) for _ in range(rows)]


def test_the_longest_go_apart():
    """Each rank has as many sequences as the others."""
    assert shares([900, 30, 400, 500, 100, 70], 2) == [[0, 4, 1], [3, 2, 5]]
    assert shares([5, 6], 1) == [[1, 0]]


@pytest.mark.parametrize(("ranks", "most"), [(2, 1.005), (4, 1.015), (8, 1.06)])
def test_no_rank_has_much_more_than_the_mean(ranks: int, most: float):
    """On average over steps, the fullest rank in means of all; as drawn it would be 1.08, 1.21 and 1.43."""
    found = []
    tokens = lengths(BATCH * 200)
    for start in range(0, len(tokens), BATCH):
        step = tokens[start : start + BATCH]
        fullest = max(sum(step[i] for i in share) for share in shares(step, ranks))
        found.append(fullest * ranks / sum(step))

    assert fmean(found) < most


def test_a_step_keeps_its_rows():
    """Every step has the rows that were drawn for it, an epoch's last rows stay as they were drawn, and an epoch is
    passed on."""
    order = Order(100)
    fair = FairShares(order, lengths(100), 4, BATCH)
    fair.set_epoch(7)

    found, drawn = list(fair), list(order)

    assert len(fair) == 100
    assert order.epoch == 7
    for start in (0, 32, 64):
        assert set(found[start : start + BATCH]) == set(drawn[start : start + BATCH])
    assert found[96:] == drawn[96:]
    assert found[:96] != drawn[:96]
