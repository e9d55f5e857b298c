"""Training in two processes comes to the very same adapter as training in one, disturbed or not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from payload_box import Box, build_box, dpo_rows, sft_rows, wait_for
from warm_client import Running

from remote_payload import placement
from remote_payload.contract import Exit, Lora, Phase, Stage
from remote_payload.placement import Placed
from remote_payload.ranks import free_port, rank_environments

MakeBox = Callable[..., Box]
# Dropout would draw other numbers on every rank, and packing would add up other groups of rows.
SETTINGS = {"placement": "ddp", "speed": "plain", "lora": Lora(r=4, alpha=8)}


@pytest.fixture(scope="module")
def alone(box_python: Path, warm: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box where both stages ran in one process: what two must come to."""
    root = tmp_path_factory.mktemp("alone") / "box"
    box = build_box(root, box_python, warm, tiny_model, sft_rows(24), dpo_rows(16), **SETTINGS)
    placement.decide(box.layout, box.job, Placed("ddp", 1))
    box.prepare()
    for stage in (Stage.SFT, Stage.DPO):
        box.train(stage)
    return box


def paired(make_box: MakeBox, alone: Box, stage: Stage) -> Box:
    """A box that stands before `stage`, which will run in two processes."""
    box = make_box(**SETTINGS)
    box.layout.prepared.write_bytes(alone.layout.prepared.read_bytes())
    placement.decide(box.layout, box.job, Placed("ddp", 2))
    if stage is Stage.DPO:
        adapter = box.layout.adapter(Stage.SFT)
        adapter.mkdir(parents=True)
        for file in alone.layout.adapter(Stage.SFT).iterdir():
            (adapter / file.name).write_bytes(file.read_bytes())
    return box


def begin(box: Box, stage: Stage) -> list[Running]:
    """Both ranks of `stage`, started as the chain starts them."""
    return [box.begin(f"remote_payload.{stage.lower()}", **place) for place in rank_environments(2, free_port(), {})]


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.DPO])
def test_two_equal_one(make_box: MakeBox, alone: Box, stage: Stage) -> None:
    """The global batch shared by two ranks gives the bytes and the losses that one process gives."""
    box = paired(make_box, alone, stage)

    assert [rank.wait() for rank in begin(box, stage)] == [Exit.OK, Exit.OK]

    assert box.adapter_hash(stage) == alone.adapter_hash(stage)
    expected = [(line["step"], line["loss"], line["tokens"]) for line in alone.events("step") if line["stage"] == stage]
    assert [(line["step"], line["loss"], line["tokens"]) for line in box.events("step")] == expected


def test_a_killed_rank_costs_nothing_but_time(make_box: MakeBox, alone: Box) -> None:
    """kill -9 of one rank ends the other, and both go on from the newest checkpoint to the same bytes."""
    box = paired(make_box, alone, Stage.SFT)
    first, second = begin(box, Stage.SFT)
    wait_for(lambda: any(line["step"] >= 4 for line in box.events("step")), "step 4")
    os.kill(second.pid, signal.SIGKILL)
    assert [first.wait(), second.wait()] == [Exit.INTERNAL, -signal.SIGKILL]

    assert [rank.wait() for rank in begin(box, Stage.SFT)] == [Exit.OK, Exit.OK]

    assert box.events("resume")[0]["step"] >= 3
    assert box.adapter_hash(Stage.SFT) == alone.adapter_hash(Stage.SFT)


def test_a_request_to_stop_reaches_every_rank(make_box: MakeBox, alone: Box) -> None:
    """Both ranks stop after the same step with a whole checkpoint; one process goes on from it to the same bytes."""
    box = paired(make_box, alone, Stage.SFT)
    box.layout.stop.touch()
    stopped = [rank.wait() for rank in begin(box, Stage.SFT)]
    box.layout.stop.unlink()
    placement.decide(box.layout, box.job, Placed("ddp", 1))

    box.train(Stage.SFT)

    assert stopped == [Exit.STOPPED, Exit.STOPPED]
    assert [line["step"] for line in box.events("resume")] == [1]
    assert box.adapter_hash(Stage.SFT) == alone.adapter_hash(Stage.SFT)


def test_the_chain_tries_and_starts_the_ranks(make_box: MakeBox, alone: Box) -> None:
    """With `placement: auto` a trial decides once for both stages, the status says why, and the ranks are started."""
    box = paired(make_box, alone, Stage.SFT)
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
    assert box.adapter_hash(Stage.DPO) == alone.adapter_hash(Stage.DPO)
