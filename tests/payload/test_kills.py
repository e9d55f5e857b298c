"""kill -9 at any moment, inside a save too, changes nothing of what a stage comes to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from payload_box import Box, before, begin_ranks, ready, wait_for

from remote_payload.contract import Exit, Stage

MakeBox = Callable[..., Box]
SEED = 5

# The stage's script in a process that dies when checkpoint-6 has all its files but is not sealed yet.
DIES_IN_A_SAVE = """
import os, runpy, signal, sys
from remote_payload import checkpoints
seal = checkpoints.seal
def die(folder, *rest):
    if folder.name == "checkpoint-6":
        os.kill(os.getpid(), signal.SIGKILL)
    return seal(folder, *rest)
checkpoints.seal = die
sys.argv = ["sft"]
runpy.run_module("remote_payload.sft", run_name="__main__")
"""


def survive(box: Box, stage: Stage, processes: int, kills: int) -> None:
    """Kill a process of `stage` so often, at random moments within a step or a save, then let it come to its end."""
    chance = random.Random(SEED)
    for _ in range(kills):
        ranks = begin_ranks(box, stage, processes)
        told = len(box.events("step")) + chance.randrange(2)
        wait_for(lambda told=told: len(box.events("step")) > told or box.layout.result(stage).exists(), "a step more")
        time.sleep(chance.uniform(0, 0.1))  # what the process does just then is left to chance
        with contextlib.suppress(ProcessLookupError):  # it came to its end before
            os.kill(chance.choice(ranks).pid, signal.SIGKILL)
        for rank in ranks:
            rank.wait()
    assert [rank.wait() for rank in begin_ranks(box, stage, processes)] == [Exit.OK] * processes


CASES = pytest.mark.parametrize(
    ("stage", "processes"), [(Stage.SFT, 1), (Stage.DPO, 1), (Stage.SFT, 2)], ids=["SFT", "DPO", "two ranks"]
)


def begun(make_box: MakeBox, trained: Box, alone: Box, stage: Stage, processes: int) -> tuple[Box, Box]:
    """A box that stands before `stage`, and the one that went through it undisturbed: one process the fast way and with
    dropout, as jobs go by default; ranks with what any number of processes must equal."""
    if processes == 1:
        return ready(make_box, trained, stage, checkpoint_every=1), trained
    return before(make_box, alone, stage, processes, checkpoint_every=1), alone


def compare(box: Box, undisturbed: Box, stage: Stage) -> None:
    """The adapters have the same bytes, and whatever step was told, however often, had the same loss."""
    losses = {(line["step"], line["loss"]) for line in undisturbed.events("step") if line["stage"] == stage}
    assert box.adapter_hash(stage) == undisturbed.adapter_hash(stage)
    assert {(line["step"], line["loss"]) for line in box.events("step")} == losses


@CASES
def test_any_moment(make_box: MakeBox, trained: Box, alone: Box, stage: Stage, processes: int) -> None:
    """After a few kills at random moments the training comes to what the undisturbed one came to."""
    box, undisturbed = begun(make_box, trained, alone, stage, processes)

    survive(box, stage, processes, kills=4 if processes == 1 and stage is Stage.SFT else 3)

    compare(box, undisturbed, stage)


@pytest.mark.full
@pytest.mark.timeout(1800)
@CASES
def test_any_moment_often(make_box: MakeBox, trained: Box, alone: Box, stage: Stage, processes: int) -> None:
    """The same after fifty kills, five for each box: a stage of a few steps has no time for more."""
    for round_ in range(10):
        box, undisturbed = begun(make_box, trained, alone, stage, processes)
        survive(box, stage, processes, kills=5)
        compare(box, undisturbed, stage)
        box.layout.root.rename(box.layout.root.with_name(f"box-{round_}"))


def test_inside_a_save(make_box: MakeBox, alone: Box) -> None:
    """The first rank dies while it seals a checkpoint: that one is set aside, and both go on from the one before."""
    box = before(make_box, alone, Stage.SFT, processes=2)
    (box.layout.root / "dies.py").write_text(DIES_IN_A_SAVE)
    codes = [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2, module="dies")]

    assert [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2)] == [Exit.OK, Exit.OK]

    assert codes == [-signal.SIGKILL, Exit.RANK_LOST]
    assert (box.layout.stage(Stage.SFT) / "bad-checkpoint-6-1" / "optimizer.pt").exists()
    assert [line["step"] for line in box.events("resume")] == [3]
    assert box.adapter_hash(Stage.SFT) == alone.adapter_hash(Stage.SFT)
