"""What is said of the scores on held-out rows."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.domain.scores import told, verdict

NAMES = {"base": "the base model", "compared": "v1-jabcde"}


def gain(low: float, high: float) -> dict[str, float]:
    return {"mean": (low + high) / 2, "low": low, "high": high}


def score(subject: str, nll: float, right: float | None = None, **gains: Any) -> dict[str, Any]:
    return {"subject": subject, "rows": 400, "nll": nll, "choice_rows": 300 if right else 0, "right": right} | {
        "nll_gain": None,
        "right_gain": None,
        **gains,
    }


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.01, 0.2, "not measurably better"),
        (0.0, 0.0, "not measurably better"),
    ],
)
def test_only_a_sure_gain_is_one(low: float, high: float, expected: str) -> None:
    """An interval that includes nought is said to be no measurable gain, wherever its middle lies."""
    assert verdict(gain(low, high)) == expected


def test_every_rival_gets_its_sentence() -> None:
    """Each other model is told of by the name a person knows, with both numbers and the interval of the difference."""
    scores = [
        score("new", 1.402, 0.97),
        score("base", 2.31, 0.512, nll_gain=gain(0.88, 0.94), right_gain=gain(0.40, 0.51)),
        score("compared", 1.405, 0.96, nll_gain=gain(-0.01, 0.016), right_gain=gain(-0.01, 0.03)),
    ]

    assert list(told(scores, NAMES)) == [
        "better than the base model on 400 held-out rows: 1.402 nats a token against 2.310, "
        "+0.910 (95 %: +0.880 to +0.940)",
        "better than the base model at choosing in 300 of them: 97.0% right against 51.2%, "
        "+45.5 points (95 %: +40.0 to +51.0)",
        "not measurably better than v1-jabcde on 400 held-out rows: 1.402 nats a token against 1.405, "
        "+0.003 (95 %: -0.010 to +0.016)",
        "not measurably better than v1-jabcde at choosing in 300 of them: 97.0% right against 96.0%, "
        "+1.0 points (95 %: -1.0 to +3.0)",
    ]


def test_rows_without_a_choice_say_nothing_of_it() -> None:
    """Where no answer holds a choice there is one sentence a rival, and without scores none."""
    scores = [score("new", 1.4), score("base", 2.3, nll_gain=gain(0.8, 1.0))]

    assert len(list(told(scores, NAMES))) == 1
    assert list(told([], NAMES)) == []
