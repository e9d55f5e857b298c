"""What training makes is kept at home while it runs, and goes up again to the machine that replaces a lost one."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path, PurePosixPath

import pytest
from boxes import LoopbackBox, ready_box

from daemon.box.pace import Pace
from daemon.box.progress import TransferProgress
from daemon.control.mirror import Mirror
from daemon.domain.records import StageRun
from daemon.errors import TransferFailed
from remote_payload import contract
from remote_payload.contract import Checkpoint, ContractError, Done, Output, Phase, Stage, Status

FILES = {"adapter_model.safetensors": b"weights", "optimizer.pt": b"opaque here", "ref/adapter.bin": b"DPO has one"}


def output(path: str, content: bytes) -> Output:
    return Output(path, len(content), hashlib.sha256(content).hexdigest())


def run(stage: Stage, nonce: str, done: Done | None = None) -> StageRun:
    text = contract.dump(done) if done else None
    return StageRun("job", 1, stage, nonce, 0, 1, 2 if done else None, text)


def status(nonce: str, checkpoint: str) -> Status:
    return Status("job", 1, Phase.RUNNING, Stage.SFT, nonce, 1.0, "boot", 7, checkpoint=checkpoint)


def train(there: LoopbackBox, step: int) -> PurePosixPath:
    """A whole checkpoint on the box."""
    path = PurePosixPath(f"run/sft/checkpoint-{step}")
    folder = there.root / path
    folder.mkdir(parents=True)
    contents = {name: content + str(step).encode() for name, content in FILES.items()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    whole = Checkpoint(Stage.SFT, step, "print", [output(name, content) for name, content in contents.items()])
    (folder / contract.CHECKPOINT_MANIFEST).write_text(contract.dump(whole))
    return path


def finish(there: LoopbackBox, nonce: str) -> Done:
    """SFT ended on the box."""
    adapter = there.root / "run/sft/adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"trained")
    return Done(Stage.SFT, nonce, 1, [output("run/sft/adapter/adapter_model.safetensors", b"trained")], 1.0)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


async def test_what_is_saved_lies_in_folders_that_a_power_cut_leaves(tmp_path: Path) -> None:
    """Every folder that was made on the way to a file is synced, up to the one that was there before."""
    synced: set[str] = set()
    sys.addaudithook(lambda event, args: synced.add(args[0]) if event == "homeport.sync_folder" else None)
    mirror = Mirror(tmp_path / "models" / "mirror")
    mirror.folder.parent.mkdir()
    async with ready_box(tmp_path / "first") as (there, box):
        await mirror.bring_checkpoint(box, run(Stage.SFT, "one"), train(there, 100))
        await mirror.bring_outputs(box, run(Stage.SFT, "one", finish(there, "one")))

    made = {folder for file in mirror.folder.rglob("*") if file.is_file() for folder in file.parents}
    assert {str(folder) for folder in made if folder.is_relative_to(mirror.folder.parent)} <= synced


async def test_newest_two_checkpoints_stay_and_the_newest_goes_up(tmp_path: Path) -> None:
    """Three checkpoints come home, two stay; a machine that never saw them gets the newest, byte for byte."""
    mirror, sft = Mirror(tmp_path / "mirror"), run(Stage.SFT, "one")
    async with ready_box(tmp_path / "first") as (there, box):
        for step in (100, 200, 300):
            path = train(there, step)
            assert mirror.lacks_checkpoint(sft, status("one", str(path))) == path
            await mirror.bring_checkpoint(box, sft, path, Pace(1e9))
            assert mirror.lacks_checkpoint(sft, status("one", str(path))) is None
        source = tree(there.root / "run/sft/checkpoint-300")
    steps = sorted(p.name for p in (tmp_path / "mirror").rglob("checkpoint-*") if p.is_dir())
    assert steps == ["checkpoint-200", "checkpoint-300"]

    async with ready_box(tmp_path / "second") as (there, box):
        await box.upload(list(mirror.uploads([run(Stage.SFT, "two")], ["two", "one"])))
        assert tree(there.root / "run/sft") == {f"checkpoint-300/{name}": text for name, text in source.items()}


async def test_what_a_machine_cannot_keep_is_fetched_where_it_lies(tmp_path: Path) -> None:
    """For as long as training leaves it there."""
    mirror = Mirror(tmp_path / "mirror")
    async with ready_box(tmp_path / "first") as (there, box):
        (there.root / "run").mkdir(exist_ok=True)
        (there.root / "run/kept").write_text("in the way of every link")
        path = train(there, 100)
        await mirror.bring_checkpoint(box, run(Stage.SFT, "one"), path)
        assert tree(mirror.folder / "SFT-one" / path) == tree(there.root / path)


async def test_a_line_slower_than_training_brings_a_checkpoint(tmp_path: Path) -> None:
    """Training deletes it once a part of it has come home, and it comes home whole."""
    mirror = Mirror(tmp_path / "mirror")
    async with ready_box(tmp_path / "first") as (there, box):
        path = train(there, 100)
        source = tree(there.root / path)

        def training(progress: TransferProgress) -> None:
            if progress.done:
                shutil.rmtree(there.root / path, ignore_errors=True)

        await mirror.bring_checkpoint(box, run(Stage.SFT, "one"), path, Pace(50.0), training)

        assert not (there.root / path).exists()
    assert tree(mirror.folder / "SFT-one" / path) == source


async def test_damaged_at_home_is_not_sent_up(tmp_path: Path) -> None:
    """A checkpoint that rotted on this disk is passed over for the one before it."""
    mirror, sft = Mirror(tmp_path / "mirror"), run(Stage.SFT, "one")
    async with ready_box(tmp_path / "first") as (there, box):
        for step in (100, 200):
            await mirror.bring_checkpoint(box, sft, train(there, step))
    newest = mirror.newest(Stage.SFT, ["one"])
    assert newest is not None and newest.name == "checkpoint-200"

    (newest / "optimizer.pt").write_bytes(b"opaque hero200")

    older = mirror.newest(Stage.SFT, ["one"])
    assert older is not None and older.name == "checkpoint-100"


async def test_finished_stage_goes_up_with_its_marker(tmp_path: Path) -> None:
    """The adapter of a finished stage and its done.json stand on the next machine where they stood on the first."""
    mirror = Mirror(tmp_path / "mirror")
    async with ready_box(tmp_path / "first") as (there, box):
        sft = run(Stage.SFT, "one", finish(there, "one"))
        assert mirror.kept([sft]) == [] and mirror.lacks_outputs([sft]) == [sft]
        assert await mirror.bring_outputs(box, sft) == 1
    assert mirror.kept([sft, run(Stage.DPO, "two")]) == [sft] and mirror.lacks_outputs([sft]) == []

    async with ready_box(tmp_path / "second") as (there, box):
        await box.upload(list(mirror.uploads([sft, run(Stage.DPO, "two")], ["two"])))
        assert tree(there.root / "run/sft") == {"adapter/adapter_model.safetensors": b"trained"}
        assert tree(there.root / "run/stages") == {"one/done.json": (sft.done_json or "").encode()}


async def test_outputs_that_are_not_what_was_promised(tmp_path: Path) -> None:
    """A box that changes an adapter after its done.json gives nothing that counts as mirrored."""
    mirror = Mirror(tmp_path / "mirror")
    async with ready_box(tmp_path / "first") as (there, box):
        sft = run(Stage.SFT, "one", finish(there, "one"))
        (there.root / "run/sft/adapter/adapter_model.safetensors").write_bytes(b"swapped")
        with pytest.raises(TransferFailed, match=r"adapter_model.safetensors is not what SFT's done.json promises"):
            await mirror.bring_outputs(box, sft)
    assert not mirror.has_outputs(sft)


@pytest.mark.parametrize(
    "path",
    [
        "payload/remote_payload/sft.py",
        "run/job.json",
        "run/dpo/adapter/x",
        "run/sft/checkpoint-x/a",
        "../a",
        "/etc/passwd",
    ],
)
async def test_a_done_json_that_names_what_is_not_its_own(tmp_path: Path, path: str) -> None:
    """What one box says it made goes up to the next: nothing outside the stage's own folder is taken from it."""
    mirror = Mirror(tmp_path / "mirror")
    async with ready_box(tmp_path / "first") as (_, box):
        sft = run(Stage.SFT, "one", Done(Stage.SFT, "one", 1, [output(path, b"forged")], 1.0))
        with pytest.raises(ContractError):
            await mirror.bring_outputs(box, sft)
    assert mirror.kept([sft]) == []


@pytest.mark.parametrize("path", ["run/sft/../../etc", "/etc", "run/dpo/checkpoint-1", "run/sft/checkpoint-x", ""])
def test_no_other_path_is_asked_for(tmp_path: Path, path: str) -> None:
    """Only a checkpoint of the stage that runs is worth asking for, whatever a box names."""
    assert Mirror(tmp_path).lacks_checkpoint(run(Stage.SFT, "one"), status("one", path)) is None
