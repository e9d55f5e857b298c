"""Which placement a job gets: decided from the cards, the batch and a trial, and said with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from payload_box import Box

from remote_payload import placement
from remote_payload.contract import Exit
from remote_payload.script import ScriptFailed

GB = 10**9

# `place` after trials that end as said: by the way in which the ranks reach each other, a loss or no end.
TRIED = """
import dataclasses, json
from pathlib import Path
from remote_payload import place
from remote_payload.layout import Layout
from remote_payload.trial import TrialFailed

class Scripted:
    alone = [(2.0, 1.0)]
    def __init__(self, *_):
        self.losses = iter(LOSSES)
    def curve(self, processes, way):
        loss = next(self.losses)
        if loss is None:
            raise TrialFailed(f"no end with {way}")
        return [(loss, 1.0)]

place.Trial = Scripted
layout = Layout(Path())
job = dataclasses.replace(layout.read_job(), placement="auto")
for LOSSES in ([2.0], [None, 2.0], [None, None], [3.0, 2.0]):
    placed = place.tried(layout, job, 2)
    print(json.dumps([placed.mode, placed.processes, placed.environment, placed.why]))
"""


@pytest.mark.parametrize(
    ("asked", "processes", "batch", "fits", "mode", "why"),
    [
        ("ddp", 1, 32, True, "single", "one card"),
        ("auto", 1, 30, True, "single", "one card"),
        ("auto", 8, 30, True, "single", "batch_size 30 cannot be shared by 8 cards"),
        ("auto", 8, 32, False, "auto_map", "does not fit"),
    ],
)
def test_decided_without_a_trial(asked: str, processes: int, batch: int, fits: bool, mode: str, why: str) -> None:
    """Where the outcome of a trial could not matter none is made, and the reason is said."""
    placed = placement.without_trial(asked, processes, batch, fits)

    assert placed is not None
    assert (placed.mode, placed.processes) == (mode, 1)
    assert why in placed.why


@pytest.mark.parametrize("asked", ["ddp", "auto"])
def test_ranks_are_tried_first(asked: str) -> None:
    """Several cards that could train in ranks have to show it."""
    assert placement.without_trial(asked, 8, 32, fits=True) is None


@pytest.mark.parametrize(
    ("batch", "fits", "code"), [(30, True, Exit.BAD_CONFIG), (32, False, Exit.PLACEMENT)], ids=["batch", "memory"]
)
def test_ddp_that_cannot_be_had_is_refused(batch: int, fits: bool, code: Exit) -> None:
    """A placement that was asked for by name is never replaced quietly."""
    with pytest.raises(ScriptFailed) as failure:
        placement.without_trial("ddp", 8, batch, fits)

    assert failure.value.code is code


def test_a_failed_trial() -> None:
    """When ranks do not train the same, `auto` goes on with one card and says why; `ddp` is refused with it."""
    placed = placement.refused("auto", "loss 2 in step 1, 1 in one process")

    assert placed.mode == "single"
    assert "loss 2 in step 1" in placed.why
    with pytest.raises(ScriptFailed, match="loss 2 in step 1") as failure:
        placement.refused("ddp", "loss 2 in step 1, 1 in one process")
    assert failure.value.code is Exit.PLACEMENT


@pytest.mark.parametrize(
    ("weights", "cards", "expected"),
    [
        (16 * GB, [80 * GB] * 8, True),
        (140 * GB, [80 * GB] * 8, False),
        (16 * GB, [80 * GB, 16 * GB], False),
        (1, [], True),
    ],
)
def test_a_model_fits_on_every_card_or_on_none(weights: int, cards: list[int], expected: bool) -> None:
    """The smallest card decides; a machine without any has the host's memory."""
    assert placement.fits(weights, cards) is expected


def test_ranks_that_cannot_reach_each_other_directly(make_box: Callable[..., Box]) -> None:
    """They are tried once more through the host's memory, and trained that way; what trains otherwise is not."""
    printed = make_box().evaluate(TRIED)

    direct, host, neither, other = [json.loads(line) for line in printed.splitlines()[-4:]]
    assert direct[:3] == ["ddp", 2, {}]
    assert host[:3] == ["ddp", 2, {"NCCL_P2P_DISABLE": "1"}]
    assert "with NCCL_P2P_DISABLE=1, in a trial" in host[3]
    assert neither[:3] == ["single", 1, {}]
    assert "no end with {}; no end with {'NCCL_P2P_DISABLE': '1'}" in neither[3]
    assert other[:3] == ["single", 1, {}]
    assert "loss 3 in step 1, 2 in one process" in other[3]
