"""Training that is interrupted comes to the very same adapter as training that is not."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

from payload_box import Box, ready

from remote_payload.contract import Exit, Stage, StageTraining

MakeBox = Callable[..., Box]

# The stage's script on a disk that is full once checkpoint-6 is written in part, which torch says in words of its own.
FILLS_THE_DISK = """
import runpy, shutil, sys
from types import SimpleNamespace
from remote_payload import checkpoints
seal = checkpoints.seal
def fill(folder, *rest):
    if folder.name == "checkpoint-6":
        shutil.disk_usage = lambda _: SimpleNamespace(free=0)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    return seal(folder, *rest)
checkpoints.seal = fill
sys.argv = ["sft"]
runpy.run_module("remote_payload.sft", run_name="__main__")
"""


def test_damaged_checkpoint_is_not_used(make_box: MakeBox, trained: Box) -> None:
    """A damaged newest checkpoint is kept as evidence, and the one before it leads to the same bytes."""
    box = ready(make_box, trained, Stage.SFT)
    shutil.copytree(
        trained.layout.stage(Stage.SFT), box.layout.stage(Stage.SFT), ignore=shutil.ignore_patterns("adapter")
    )
    optimizer = box.layout.stage(Stage.SFT) / "checkpoint-12/optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])

    box.train(Stage.SFT)

    assert box.events("resume")[0]["step"] == 9
    assert (box.layout.stage(Stage.SFT) / "bad-checkpoint-12-1/optimizer.pt").exists()
    assert box.adapter_hash(Stage.SFT) == trained.adapter_hash(Stage.SFT)


def test_a_save_that_fills_the_disk_leaves_it_room(make_box: MakeBox, trained: Box) -> None:
    """What was written of it goes, or nothing could be written any more, not even how the stage ended; and the reason
    is told as it is."""
    box = ready(make_box, trained, Stage.SFT)
    (box.layout.root / "fills.py").write_text(FILLS_THE_DISK)

    ended = box.begin("fills").wait()
    left = sorted(path.name for path in box.layout.stage(Stage.SFT).glob("*checkpoint-*"))
    box.train(Stage.SFT)

    assert ended == Exit.OUT_OF_DISK
    assert "the disk is full" in box.events("error")[0]["msg"]
    assert left == ["checkpoint-3"]
    assert box.adapter_hash(Stage.SFT) == trained.adapter_hash(Stage.SFT)


def test_other_settings_do_not_resume(make_box: MakeBox, trained: Box) -> None:
    """Checkpoints of another learning rate are refused with exit 50 and left alone."""
    box = ready(make_box, trained, Stage.SFT)
    shutil.copytree(trained.layout.stage(Stage.SFT), box.layout.stage(Stage.SFT))
    box.set(sft=dataclasses.replace(StageTraining(epochs=2, lr=1e-3), lr=2e-3))

    refused = box.call("sft")

    assert refused.returncode == Exit.CHECKPOINT_MISMATCH, refused.stderr
    assert (box.layout.stage(Stage.SFT) / "checkpoint-12").is_dir()


def test_stop_leaves_a_checkpoint(make_box: MakeBox, trained: Box) -> None:
    """A request to stop ends the stage after the step with a checkpoint and exit 75; going on loses nothing."""
    box = ready(make_box, trained, Stage.SFT)
    box.layout.stop.touch()
    stopped = box.call("sft")
    box.layout.stop.unlink()

    box.train(Stage.SFT)

    assert stopped.returncode == Exit.STOPPED, stopped.stderr
    assert [line["step"] for line in box.events("resume")] == [1]
    assert [line["step"] for line in box.events("step")] == list(range(1, 13))
    assert box.adapter_hash(Stage.SFT) == trained.adapter_hash(Stage.SFT)
