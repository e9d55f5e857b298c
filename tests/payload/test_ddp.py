"""Training in two processes comes to the very same adapter as training in one, disturbed or not."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable

import pytest
from payload_box import Box, before, begin_ranks, dpo_rows, sft_rows, wait_for, warm

from remote_payload import placement
from remote_payload.contract import Exit, Phase, Stage
from remote_payload.placement import Placed
from remote_payload.ranks import verdict

MakeBox = Callable[..., Box]

FIGURES = ("step", "loss", "grad_norm", "tokens", "rewards/accuracies", "rewards/margins", "logps/chosen")

# The SFT script in ranks of which the second hangs in its fifth forward, and the first has little patience.
SILENT = """
import os, runpy, signal, sys
from trl import SFTTrainer
from remote_payload import collective
collective.PATIENCE_S = 3
forward, count = SFTTrainer.compute_loss, 0
def silent(*args, **kwargs):
    global count
    count += 1
    if os.environ["RANK"] == "1" and count == 5:
        os.kill(os.getpid(), signal.SIGSTOP)
    return forward(*args, **kwargs)
SFTTrainer.compute_loss = silent
sys.argv = ["sft"]
runpy.run_module("remote_payload.sft", run_name="__main__")
"""

# The SFT script in ranks of which the second runs out of memory in its fifth forward.
SHORT_OF_MEMORY = """
import os, runpy, sys
import torch
from remote_payload.steps import PackedSFT
forward, count = PackedSFT.compute_loss, 0
def short(*args, **kwargs):
    global count
    count += 1
    if os.environ["RANK"] == "1" and count == 5:
        raise torch.OutOfMemoryError("no room")
    return forward(*args, **kwargs)
PackedSFT.compute_loss = short
sys.argv = ["sft"]
runpy.run_module("remote_payload.sft", run_name="__main__")
"""


# A stage's script in ranks that recompute activations, as they do on cards where they do not fit.
RECOMPUTING = """
import runpy, sys
from dataclasses import replace
from remote_payload import speed
quicken = speed.quicken
def recomputing(*args):
    way = quicken(*args)
    return replace(way, room=replace(way.room, recompute=True))
speed.quicken = recomputing
sys.argv = ["{script}"]
runpy.run_module("remote_payload.{script}", run_name="__main__")
"""


def test_a_request_to_stop_reaches_every_rank(make_box: MakeBox, alone: Box) -> None:
    """Both ranks stop after the same step with a whole checkpoint; one process goes on from it to the same bytes."""
    box = before(make_box, alone, Stage.SFT, processes=2)
    box.layout.stop.touch()
    stopped = [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2)]
    box.layout.stop.unlink()
    placement.decide(box.layout, box.job, Placed("ddp", 1))

    box.train(Stage.SFT)

    assert stopped == [Exit.STOPPED, Exit.STOPPED]
    assert [line["step"] for line in box.events("resume")] == [1]
    assert box.adapter_hash(Stage.SFT) == alone.adapter_hash(Stage.SFT)


def test_one_rank_short_of_memory(make_box: MakeBox, alone: Box) -> None:
    """Half the tokens a forward are remembered for every rank, the global batch stays, and so do the losses."""
    box = before(make_box, alone, Stage.SFT, processes=2, speed="fast")
    (box.layout.root / "short.py").write_text(SHORT_OF_MEMORY)
    codes = [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2, module="short")]

    assert [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2)] == [Exit.OK, Exit.OK]

    assert verdict(codes) == Exit.OUT_OF_MEMORY
    halved = int((box.layout.stage(Stage.SFT) / "micro_batch").read_text())
    assert f"next try with {halved} tokens" in box.events("error")[0]["msg"] + box.events("error")[-1]["msg"]
    assert f"at most {halved} tokens a forward" in (box.layout.root / "stdout").read_text()
    expected = {line["step"]: line["loss"] for line in alone.events("step") if line["stage"] == Stage.SFT}
    assert all(line["loss"] == pytest.approx(expected[line["step"]], abs=1e-5) for line in box.events("step"))
    assert box.events("step")[-1]["step"] == len(expected)


def test_a_silent_rank_is_lost(make_box: MakeBox, alone: Box) -> None:
    """The rank that waits for one that hangs says so, and all of them come to the same bytes when started again."""
    box = before(make_box, alone, Stage.SFT, processes=2)
    (box.layout.root / "silent.py").write_text(SILENT)
    waiting, hung = begin_ranks(box, Stage.SFT, 2, module="silent")
    code = waiting.wait()
    os.kill(hung.pid, signal.SIGKILL)

    assert [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2)] == [Exit.OK, Exit.OK]

    assert code == Exit.RANK_LOST
    assert "did not answer" in box.events("error")[0]["msg"]
    assert box.adapter_hash(Stage.SFT) == alone.adapter_hash(Stage.SFT)


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.DPO])
def test_packed_steps_in_ranks(make_box: MakeBox, alone: Box, stage: Stage) -> None:
    """Ranks whose forwards differ in number and size, and which recompute their activations, come to the losses and
    figures of one process that keeps them."""
    rows, pairs = sft_rows(24), dpo_rows(16)
    for i, row in enumerate([*rows, *pairs]):
        answer = row["messages"][1] if "messages" in row else row["chosen"][0]
        answer["content"] += " and rose" * (20 if i % 4 == 0 else 0)
    curves = []
    for processes in (1, 2):
        # What fits a forward is one long sequence or several short ones, so ranks need different numbers of them.
        box = before(make_box, alone, stage, processes, speed="fast", micro_batch_size=1, rows=rows, pairs=pairs)
        (box.layout.root / "recomputing.py").write_text(RECOMPUTING.format(script=stage.lower()))
        module = "recomputing" if processes > 1 else None
        codes = [rank.wait() for rank in begin_ranks(box, stage, processes, module)]
        assert codes == [Exit.OK] * processes
        curves.append([{name: line[name] for name in FIGURES if name in line} for line in box.events("step")])
        shutil.rmtree(box.layout.root)

    one, two = curves
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-6, abs=1e-5)


def test_the_chain_tries_and_starts_the_ranks(make_box: MakeBox, alone: Box) -> None:
    """With `placement: auto` a trial decides once for both stages, the status says why, and the ranks are started; the
    first of them says hello for all."""
    box = before(make_box, alone, Stage.SFT, processes=2)
    box.layout.placement.unlink()
    box.set(placement="auto")

    box.start("nonce-sft", HOMEPORT_PYTHON=warm(box), HOMEPORT_CPU_RANKS="2")

    wait_for(lambda: box.events("placement") or box.events("error"), "the trial's end")
    for over in (1, 2):
        wait_for(lambda n=over: len(box.events("stage_done") + box.events("error")) >= n, f"{over} stages over")
    assert box.ended() == Phase.DONE
    assert [(line["mode"], line["processes"]) for line in box.events("placement")] == [("ddp", 2)]
    assert box.status()["status"]["placement"] == "ddp: 2 processes train what one trains, in a trial"
    for stage in (Stage.SFT, Stage.DPO):
        assert box.adapter_hash(stage) == alone.adapter_hash(stage)
    assert curve(box) == curve(alone)
    hellos = [(line["stage"], line["processes"], line["plain"]) for line in box.events("hello")]
    assert hellos == [(Stage.SFT, 2, "as asked"), (Stage.DPO, 2, "as asked")]


def curve(box: Box) -> list[tuple[str, int, float, int]]:
    """Every step's figures, of both stages."""
    return [(line["stage"], line["step"], line["loss"], line["tokens"]) for line in box.events("step")]
