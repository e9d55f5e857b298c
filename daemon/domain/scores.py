"""What is said of a model's scores on the held-out rows: better, worse, or plainly that nobody can tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COMPARED = "the model that eval.compare_to names"

Score = Mapping[str, Any]  # contract.Score as JSON


def told(scores: Sequence[Score], names: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each model that the new one is held against; `names`: what a person calls those, by subject."""
    ours = next((score for score in scores if score["subject"] == "new"), None)
    for theirs in scores:
        if ours is None or theirs is ours:
            continue
        gain = theirs["nll_gain"]
        yield (
            f"{verdict(gain)} than {names[theirs['subject']]} on {ours['rows']} held-out rows: "
            f"{ours['nll']:.3f} nats a token against {theirs['nll']:.3f}, {interval(gain)}"
        )
        if (gain := theirs["right_gain"]) is not None:
            yield (
                f"{verdict(gain)} than {names[theirs['subject']]} at choosing in {ours['choice_rows']} of them: "
                f"{ours['right']:.1%} right against {theirs['right']:.1%}, {interval(gain, percent=True)}"
            )


def verdict(gain: Mapping[str, float]) -> str:
    """A gain whose interval includes nought is none."""
    if gain["low"] > 0:
        return "better"
    return "worse" if gain["high"] < 0 else "not measurably better"


def interval(gain: Mapping[str, float], *, percent: bool = False) -> str:
    """The gain with its 95 % interval."""
    scale, unit, digits = (100, " points", 1) if percent else (1, "", 3)
    mean, low, high = (f"{gain[key] * scale:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean}{unit} (95 %: {low} to {high})"
