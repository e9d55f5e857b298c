"""The max_length that fits the rows, and how many of them it may cut."""

from __future__ import annotations

import pytest

from remote_payload import lengths
from remote_payload.contract import Stage


@pytest.mark.parametrize(
    ("stages", "longest", "expected"),
    [
        ([[100] * 995 + [900] * 5], 4096, 128),  # the longest 0.5 % do not count
        ([[100] * 994 + [900] * 6], 4096, 960),
        ([[64]], 4096, 64),
        ([[65], [200], []], 4096, 256),  # the stage with the longer rows decides
        ([[9000]], 131072, 4096),
        ([[900]], 512, 512),
    ],
)
def test_fitting(stages: list[list[int]], longest: int, expected: int) -> None:
    """The length that 99.5 % of the rows keep to, in steps of 64, within what model and memory allow."""
    assert lengths.fitting(stages, longest) == expected


@pytest.mark.parametrize(
    ("stage", "cut", "refused"),
    [(Stage.SFT, 20, False), (Stage.SFT, 21, True), (Stage.DPO, 10, False), (Stage.DPO, 11, True)],
)
def test_what_may_be_cut(stage: Stage, cut: int, refused: bool) -> None:
    """2 % of the SFT rows and 1 % of the DPO rows may lose their end, no more; the refusal counts them."""
    found = lengths.objections({stage: [129] * cut + [128] * (1000 - cut)}, 128)

    assert [text.startswith(f"{cut} of 1000 {stage} rows are longer than 128 tokens") for text in found] == [
        True
    ] * refused


def test_spread() -> None:
    """The percentiles are lengths of real rows."""
    assert lengths.spread(list(range(1, 1001))) == {"p50": 500, "p95": 950, "p99.5": 995, "max": 1000}
