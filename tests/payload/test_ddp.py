"""Training in two processes comes to the very same adapter as training in one, disturbed or not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from payload_box import Box, before, begin_ranks, wait_for

from remote_payload import placement
from remote_payload.contract import Exit, Phase, Stage
from remote_payload.placement import Placed
from remote_payload.ranks import verdict

MakeBox = Callable[..., Box]

# The SFT script in ranks of which the second runs out of memory in its fifth forward.
SHORT_OF_MEMORY = """
import os, runpy, sys
import torch
from trl import SFTTrainer
forward, count = SFTTrainer.compute_loss, 0
def short(*args, **kwargs):
    global count
    count += 1
    if os.environ["RANK"] == "1" and count == 5:
        raise torch.OutOfMemoryError("no room")
    return forward(*args, **kwargs)
SFTTrainer.compute_loss = short
sys.argv = ["sft"]
runpy.run_module("remote_payload.sft", run_name="__main__")
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
    """Half the micro batch is remembered for every rank, the global batch stays, and so do the losses."""
    box = before(make_box, alone, Stage.SFT, processes=2)
    (box.layout.root / "short.py").write_text(SHORT_OF_MEMORY)
    codes = [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2, module="short")]

    assert [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2)] == [Exit.OK, Exit.OK]

    assert verdict(codes) == Exit.OUT_OF_MEMORY
    assert "next try with 1 rows" in box.events("error")[0]["msg"] + box.events("error")[-1]["msg"]
    expected = {line["step"]: line["loss"] for line in alone.events("step") if line["stage"] == Stage.SFT}
    assert all(line["loss"] == pytest.approx(expected[line["step"]], abs=1e-5) for line in box.events("step"))
    assert box.events("step")[-1]["step"] == len(expected)


def test_the_chain_tries_and_starts_the_ranks(make_box: MakeBox, alone: Box) -> None:
    """With `placement: auto` a trial decides once for both stages, the status says why, and the ranks are started."""
    box = before(make_box, alone, Stage.SFT, processes=2)
    box.layout.placement.unlink()
    box.set(placement="auto")
    client = Path(__file__).with_name("warm_client.py")
    python = box.layout.root / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *remote_payload.run*) exec {box.python} "$@";; esac\n'
        f'exec {sys.executable} -S {client} {box.warm} "$@"\n'
    )
    python.chmod(0o755)

    box.start("nonce-sft", HOMEPORT_PYTHON=str(python), HOMEPORT_CPU_RANKS="2")

    wait_for(lambda: box.events("placement") or box.events("error"), "the trial's end")
    for over in (1, 2):
        wait_for(lambda n=over: len(box.events("stage_done") + box.events("error")) >= n, f"{over} stages over")
    wait_for(lambda: box.status()["status"]["phase"] in (Phase.DONE, Phase.FAILED), "the chain's end")
    assert [(line["mode"], line["processes"]) for line in box.events("placement")] == [("ddp", 2)]
    assert box.status()["status"]["placement"] == "ddp: 2 processes train what one trains, in a trial"
    for stage in (Stage.SFT, Stage.DPO):
        assert box.adapter_hash(stage) == alone.adapter_hash(stage)
    assert curve(box) == curve(alone)


def curve(box: Box) -> list[tuple[str, int, float, int]]:
    """Every step's figures, of both stages."""
    return [(line["stage"], line["step"], line["loss"], line["tokens"]) for line in box.events("step")]
