"""A checkpoint is used only when every byte of it is what was sealed."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sealed import MARK, sealed

from remote_payload import checkpoints, fingerprint, hashes
from remote_payload.contract import (
    CHECKPOINT_MANIFEST,
    Exit,
    Integration,
    JobFile,
    Lora,
    ModelSource,
    StageTraining,
)
from remote_payload.fingerprint import Fingerprint
from remote_payload.layout import Layout
from remote_payload.script import ScriptFailed


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


def test_one_that_the_disk_does_not_give_back_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad block in the newest does not hide the one before."""
    before, newest = sealed(tmp_path, 100), sealed(tmp_path, 200)
    right = hashes.sha256

    def unreadable(path: Path) -> str:
        if newest in path.parents:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return right(path)

    monkeypatch.setattr(hashes, "sha256", unreadable)

    found, damaged = checkpoints.newest_whole(tmp_path, MARK)

    assert (found, [folder.name for folder in damaged]) == (before, ["bad-checkpoint-200-1"])


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


JOB = JobFile(
    "j00001", 1, "tiny", ModelSource("tiny"), [], Integration("T", 1, 0), Lora(), ["Q8_0"], sft=StageTraining()
)  # fmt: skip
# Field of the job, another value, and the parts of the fingerprint that this changes.
CHANGES: list[tuple[str, Any, set[str]]] = [
    ("lora", Lora(r=8), {"lora.r"}),
    ("lora", Lora(alpha=8), {"lora.alpha"}),
    ("lora", Lora(dropout=0.1), {"lora.dropout", "processes"}),  # each process draws its own numbers
    ("lora", Lora(target_modules="q_proj"), {"lora.target_modules"}),
    ("sft", StageTraining(lr=1e-5), {"lr"}),
    ("sft", StageTraining(epochs=2), {"epochs"}),
    ("sft", StageTraining(max_steps=9), {"max_steps"}),
    ("sft", StageTraining(beta=0.2), {"beta"}),
    ("batch_size", 16, {"batch_size"}),
    ("max_length", 512, {"max_length"}),
    ("seed", 7, {"seed"}),
    ("reasoning", "empty", {"reasoning"}),
    ("speed", "plain", {"speed"}),
]
# What a resume may find changed, or what the fingerprint is given apart from the job: rows, adapter, processes.
FREE = {
    "job", "attempt", "name", "model", "stages", "integration", "gguf", "compare_to", "eval_data", "micro_batch_size",
    "placement", "checkpoint_every", "checkpoint_keep", "gates", "choices", "report_to", "away_limit_s", "notify_url",
    "chunk_size", "contract",
}  # fmt: skip
GIVEN = {"sft_data", "dpo_data", "start_from", "dpo"}


@pytest.fixture
def marked(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The parts for a job with changes, its data, parent adapter and number of processes."""
    layout = Layout(tmp_path)
    layout.model.mkdir()
    (layout.model / "config.json").write_text("{}")

    def mark(data: str = "a" * 64, adapter: Path | None = None, processes: int = 1, **changes: Any) -> dict[str, str]:
        job = dataclasses.replace(JOB, **changes)
        assert job.sft
        return dict(fingerprint.of(layout, job, job.sft, data, adapter, processes).parts)

    return mark


def different(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one | other if one.get(name) != other.get(name)}


@pytest.mark.parametrize(("name", "value", "parts"), CHANGES)
def test_every_setting_that_trains_otherwise_is_marked(
    marked: Callable[..., dict[str, str]], name: str, value: Any, parts: set[str]
) -> None:
    """Each setting that changes what is trained changes the part of its own name."""
    assert different(marked(), marked(**{name: value})) == parts


def test_every_field_of_the_job_is_judged() -> None:
    """Whoever adds a setting says whether a resume may find it changed."""
    assert {field.name for field in dataclasses.fields(JobFile)} == {name for name, _, _ in CHANGES} | FREE | GIVEN


def test_data_model_and_parent_are_marked(marked: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """Other rows, another byte of the base model and another parent adapter are other trainings; more processes are
    one only where dropout draws in each."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    plain, dropped = marked(), marked(lora=Lora(dropout=0.1))

    assert different(plain, marked(data="b" * 64)) == {"data"}
    assert different(plain, marked(adapter=tmp_path)) == {"parent adapter"}
    assert different(plain, marked(processes=2)) == set()
    assert different(dropped, marked(lora=Lora(dropout=0.1), processes=2)) == {"processes"}
    (tmp_path / "model" / "config.json").write_text("[]")
    assert different(plain, marked()) == {"model file config.json"}
