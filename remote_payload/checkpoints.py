"""Checkpoints that are whole or not used: sealed with a manifest, checked before resume, set aside when damaged.

The trainer's own folders are not written atomically, and its own resume takes the highest number, whatever state that
folder is in. So a checkpoint counts only once `seal` has synced every file and written checkpoint.json last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from remote_payload import contract, hashes
from remote_payload.contract import CHECKPOINT_MANIFEST, Checkpoint, ContractError, Exit, Output, Stage
from remote_payload.fingerprint import Fingerprint
from remote_payload.script import ScriptFailed

PREFIX = "checkpoint-"


def seal(folder: Path, stage: Stage, step: int, fingerprint: Fingerprint) -> Checkpoint:
    """Sync and hash every file of `folder`, then write its manifest. From here on a power cut leaves it whole."""
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKPOINT_MANIFEST):
        sync(path)
        name = path.relative_to(folder).as_posix()
        files.append(Output(name, path.stat().st_size, hashes.sha256(path)))
    for directory in {folder, *(p for p in folder.rglob("*") if p.is_dir())}:
        sync(directory)
    checkpoint = Checkpoint(stage, step, fingerprint.digest, files, dict(fingerprint.parts))
    contract.write_whole(folder / CHECKPOINT_MANIFEST, contract.dump(checkpoint))
    sync(folder.parent)
    return checkpoint


def newest_whole(stage_folder: Path, fingerprint: Fingerprint) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, None to start anew; and the damaged newer ones, now renamed to bad-checkpoint-*.

    Raises ScriptFailed (50) when the newest whole one belongs to other settings or data: going on from it would
    quietly train something else.
    """
    damaged = []
    for folder in _newest_first(stage_folder):
        checkpoint = whole(folder)
        if checkpoint is None:
            damaged.append(_set_aside(folder))
        elif checkpoint.fingerprint != fingerprint.digest:
            different = "; ".join(fingerprint.differences(checkpoint.parts))
            raise ScriptFailed(
                Exit.CHECKPOINT_MISMATCH,
                f"{folder.name} was made with other settings or data ({different}); "
                "ask for a fresh start of this stage",
            )
        else:
            return folder, damaged
    return None, damaged


def whole(folder: Path) -> Checkpoint | None:
    """The manifest of `folder` if every file in it is there as recorded, else None."""
    try:
        checkpoint = contract.load(Checkpoint, (folder / CHECKPOINT_MANIFEST).read_bytes())
        right = all(_is_right(folder / contract.checked_path(output.path), output) for output in checkpoint.files)
    except (OSError, ContractError):  # cut short while being written, or the disk gives it back no more: not whole
        return None
    return checkpoint if right else None


def _is_right(path: Path, output: Output) -> bool:
    if not path.is_file() or path.is_symlink() or path.stat().st_size != output.size:
        return False
    return hashes.sha256(path) == output.sha256


def drop_unsealed(stage_folder: Path) -> None:
    """Delete what a failed save left: it may fill the disk, so that nothing else could be written any more."""
    for folder in _newest_first(stage_folder):
        if not (folder / CHECKPOINT_MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)


def prune(stage_folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest sealed checkpoints. What is not sealed is evidence and stays."""
    sealed = [folder for folder in _newest_first(stage_folder) if (folder / CHECKPOINT_MANIFEST).exists()]
    for folder in sealed[max(keep, 1) :]:
        shutil.rmtree(folder)


def _newest_first(stage_folder: Path) -> Iterator[Path]:
    numbered = [p for p in stage_folder.glob(f"{PREFIX}*") if p.is_dir() and p.name[len(PREFIX) :].isdigit()]
    yield from sorted(numbered, key=lambda p: int(p.name[len(PREFIX) :]), reverse=True)


def _set_aside(folder: Path) -> Path:
    """Rename to the first free bad-checkpoint-N-K beside it."""
    k = 1
    while (aside := folder.with_name(f"bad-{folder.name}-{k}")).exists():
        k += 1
    return folder.rename(aside)


def sync(path: Path) -> None:
    """Have the file or folder on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
