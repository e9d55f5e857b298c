"""A checkpoint that came home, copied by hand to where a person wants it: whole, or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from daemon.control import checkpoints
from daemon.control.checkpoints import Spot
from daemon.errors import TransferFailed
from remote_payload.contract import CHECKPOINT_MANIFEST, Checkpoint, Output, Stage, dump

FILES = {"adapter_model.safetensors": b"weights", "ref/adapter.bin": b"DPO has one"}


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """With one checkpoint of step 100."""
    folder = kept(tmp_path / "mirror")
    described = []
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        described.append(Output(name, len(content), hashlib.sha256(content).hexdigest()))
    (folder / CHECKPOINT_MANIFEST).write_text(dump(Checkpoint(Stage.SFT, 100, "print", described)))
    return tmp_path / "mirror"


def kept(mirror: Path, name: str = "checkpoint-100") -> Path:
    return mirror / "SFT-one/run/sft" / name


def found(mirror: Path) -> list[Spot]:
    return checkpoints.at_home(mirror, {"SFT": ["one"], "DPO": ["two"]})


def test_a_whole_one_is_copied_with_its_manifest(mirror: Path, tmp_path: Path) -> None:
    [spot] = found(mirror)

    copied = checkpoints.copy(spot, tmp_path / "to")

    assert sorted(output.path for output in copied) == sorted([*FILES, CHECKPOINT_MANIFEST])
    for output in copied:
        assert (tmp_path / "to" / output.path).read_bytes() == (kept(mirror) / output.path).read_bytes()
    assert not list((tmp_path / "to").rglob("*.part"))


def test_damage_is_named_and_nothing_counts_as_whole(mirror: Path, tmp_path: Path) -> None:
    """It rotted on this disk: no manifest stands beside the copy, and the file has no name that a trainer takes."""
    (kept(mirror) / "ref/adapter.bin").write_bytes(b"DPO had one")

    with pytest.raises(TransferFailed, match=r"ref/adapter.bin is not what its checkpoint.json promises"):
        checkpoints.copy(found(mirror)[0], tmp_path / "to")

    assert not (tmp_path / "to" / CHECKPOINT_MANIFEST).exists()
    assert not (tmp_path / "to/ref/adapter.bin").exists()


@pytest.mark.parametrize("path", ["../../evil", "/tmp/evil"])
def test_a_manifest_that_names_what_is_not_its_own(mirror: Path, tmp_path: Path, path: str) -> None:
    """It came from a rented machine: nothing is read or written outside of the two folders."""
    forged = Checkpoint(Stage.SFT, 100, "print", [Output(path, 1, "0" * 64)])
    (kept(mirror) / CHECKPOINT_MANIFEST).write_text(dump(forged))

    with pytest.raises(TransferFailed, match=r"checkpoint.json"):
        checkpoints.copy(found(mirror)[0], tmp_path / "to")

    assert not (tmp_path / "to").exists()


def test_half_a_manifest_is_said(mirror: Path, tmp_path: Path) -> None:
    (kept(mirror) / CHECKPOINT_MANIFEST).write_text('{"stage":')

    with pytest.raises(TransferFailed, match="not JSON"):
        checkpoints.copy(found(mirror)[0], tmp_path / "to")


@pytest.mark.parametrize("name", ["checkpoint-0100", "checkpoint-x", "checkpoint-100.old"])
def test_what_is_no_checkpoint_is_not_offered(mirror: Path, name: str) -> None:
    """By no other name than the trainer's: of two folders of one step nobody could say which is meant."""
    kept(mirror).rename(kept(mirror, name))

    assert found(mirror) == []
