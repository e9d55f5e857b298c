"""A checkpoint that is on its way home outlives training's deletion of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sealed import MARK, sealed

from remote_payload import checkpoints, keep
from remote_payload.contract import CHECKPOINT_MANIFEST


def call(root: Path, step: int) -> None:
    keep.main(["--root", str(root), f"run/sft/checkpoint-{step}", "one"])


def kept(root: Path) -> list[str]:
    return [path.relative_to(root / "run/kept").as_posix() for path in (root / "run/kept").glob("*/*")]


def test_it_outlives_what_training_deletes(tmp_path: Path) -> None:
    """Whole after it was pruned, without having taken room before, and no resume takes it for a checkpoint."""
    first, stage = sealed(tmp_path / "run/sft", 1), tmp_path / "run/sft"
    call(tmp_path, 1)
    assert (first / "optimizer.pt").stat().st_nlink == 2
    for step in (2, 3):
        sealed(tmp_path / "run/sft", step)
    checkpoints.prune(stage, keep=1)

    call(tmp_path, 1)

    assert kept(tmp_path) == ["one/checkpoint-1"] and checkpoints.whole(tmp_path / "run/kept/one/checkpoint-1")
    assert checkpoints.newest_whole(stage, MARK) == (stage / "checkpoint-3", [])


def test_one_that_was_made_anew_is_kept_anew(tmp_path: Path) -> None:
    """The disk had not kept the first: its resume set it aside and came to the same step again."""
    damaged = sealed(tmp_path / "run/sft", 1)
    call(tmp_path, 1)
    (damaged / "optimizer.pt").write_bytes(b"zeros")
    damaged.rename(damaged.with_name("bad-checkpoint-1-1"))
    sealed(tmp_path / "run/sft", 1)

    call(tmp_path, 1)

    assert checkpoints.whole(tmp_path / "run/kept/one/checkpoint-1")


def test_the_one_before_goes(tmp_path: Path) -> None:
    """Also what a call left that was killed in its midst: no more room is taken than that of one."""
    for step in (1, 2):
        sealed(tmp_path / "run/sft", step)
    call(tmp_path, 1)
    (tmp_path / "run/kept/one/checkpoint-2.new").mkdir()

    call(tmp_path, 2)

    assert kept(tmp_path) == ["one/checkpoint-2"]


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it cannot be kept is an error, and nothing that could pass for a checkpoint is left."""

    def link(*_: object, **__: object) -> None:
        raise PermissionError("no links on this disk")

    sealed(tmp_path / "run/sft", 1)
    monkeypatch.setattr(os, "link", link)

    with pytest.raises(OSError, match="no links"):
        call(tmp_path, 1)

    assert "one/checkpoint-1" not in kept(tmp_path)


def test_one_that_was_half_deleted_is_not_kept(tmp_path: Path) -> None:
    """Its manifest lies there still, and names what does not."""
    step = sealed(tmp_path / "run/sft", 1)
    shutil.rmtree(step / "ref")
    assert (step / CHECKPOINT_MANIFEST).exists()

    with pytest.raises(FileNotFoundError):
        call(tmp_path, 1)

    assert "one/checkpoint-1" not in kept(tmp_path)
