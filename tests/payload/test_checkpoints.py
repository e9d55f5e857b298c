"""A checkpoint is used only when every byte of it is what was sealed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from remote_payload import checkpoints
from remote_payload.contract import CHECKPOINT_MANIFEST, Exit, Stage
from remote_payload.fingerprint import Fingerprint
from remote_payload.script import ScriptFailed

MARK = Fingerprint({"lr": "0.0001", "seed": "42"})


def sealed(stage_folder: Path, step: int, mark: Fingerprint = MARK) -> Path:
    folder = stage_folder / f"checkpoint-{step}"
    (folder / "ref").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"moments" * step)
    (folder / "ref/adapter.safetensors").write_bytes(b"weights" * step)
    checkpoints.seal(folder, Stage.SFT, step, mark)
    return folder


def truncate(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"mom")


def flip(folder: Path) -> None:
    content = bytearray((folder / "optimizer.pt").read_bytes())
    content[0] ^= 1
    (folder / "optimizer.pt").write_bytes(content)


def lose_file(folder: Path) -> None:
    (folder / "ref/adapter.safetensors").unlink()


def lose_manifest(folder: Path) -> None:
    (folder / CHECKPOINT_MANIFEST).unlink()


def halve_manifest(folder: Path) -> None:
    manifest = folder / CHECKPOINT_MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:40])


def lead_outside(folder: Path) -> None:
    manifest = folder / CHECKPOINT_MANIFEST
    manifest.write_text(manifest.read_text().replace("optimizer.pt", "../../optimizer.pt"))


def link(folder: Path) -> None:
    file = folder / "optimizer.pt"
    elsewhere = file.rename(folder.parent / "elsewhere.pt")
    file.symlink_to(elsewhere)


@pytest.mark.parametrize("damage", [truncate, flip, lose_file, lose_manifest, halve_manifest, lead_outside, link])
def test_damaged_is_set_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A damaged checkpoint is renamed, kept, and the one before it is taken."""
    older, newer = sealed(tmp_path, 9), sealed(tmp_path, 10)
    damage(newer)

    found, damaged = checkpoints.newest_whole(tmp_path, MARK)

    assert found == older
    assert damaged == [tmp_path / "bad-checkpoint-10-1"]
    assert damaged[0].is_dir() and not newer.exists()


def test_a_second_damaged_one_gets_its_own_name(tmp_path: Path) -> None:
    """Evidence of an earlier accident is never overwritten."""
    for _ in range(2):
        lose_manifest(sealed(tmp_path, 3))
        checkpoints.newest_whole(tmp_path, MARK)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad-checkpoint-3-1", "bad-checkpoint-3-2"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    """A whole checkpoint of other settings or data ends the stage with exit 50, named, and stays where it is."""
    folder = sealed(tmp_path, 5, Fingerprint({"lr": "0.0002", "seed": "42"}))

    with pytest.raises(ScriptFailed, match=r"\(lr 0.0002 there, 0.0001 now\)") as failure:
        checkpoints.newest_whole(tmp_path, MARK)

    assert failure.value.code is Exit.CHECKPOINT_MISMATCH
    assert folder.is_dir()


def test_nothing_to_resume(tmp_path: Path) -> None:
    """A stage without checkpoints begins at its beginning."""
    assert checkpoints.newest_whole(tmp_path, MARK) == (None, [])


def test_prune_counts_sealed_ones_only(tmp_path: Path) -> None:
    """An unsealed checkpoint neither counts among the kept nor is deleted."""
    for step in (2, 4, 6, 8):
        sealed(tmp_path, step)
    lose_manifest(tmp_path / "checkpoint-8")

    checkpoints.prune(tmp_path, keep=2)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
