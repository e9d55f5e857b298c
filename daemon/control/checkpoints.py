"""The checkpoints of a job that a person can have: whole ones on its machine, and those that came home."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from daemon import platform
from daemon.artifacts import hashing
from daemon.box.box import Box
from daemon.control.mirror import CHECKPOINT, TRAINING
from daemon.errors import TransferFailed
from remote_payload.contract import CHECKPOINT_MANIFEST, RUN_DIR, Checkpoint, ContractError, Output, checked_path, load

LATEST = "latest"
_SPOT = re.compile(rf"{RUN_DIR}/(sft|dpo)/{CHECKPOINT}([0-9]{{1,9}})/{re.escape(CHECKPOINT_MANIFEST)}")
_LIST = f"ls -1d {RUN_DIR}/*/{CHECKPOINT}*/{CHECKPOINT_MANIFEST} 2>/dev/null || true"


@dataclass(frozen=True)
class Spot:
    """One checkpoint: its path on the box, and its folder here when it came home."""

    stage: str
    step: int
    path: PurePosixPath
    here: Path | None = None


async def on_machine(box: Box) -> list[Spot]:
    """Those that say they are whole. Raises BoxError."""
    return [spot for line in (await box.run(_LIST)).splitlines() if (spot := _spot(line)) is not None]


def at_home(mirror: Path, nonces: Mapping[str, Sequence[str]]) -> list[Spot]:
    """Those of the starts `nonces` (by stage) in the job's mirror."""
    found = []
    for stage, started in nonces.items():
        for top in (mirror / f"{stage}-{nonce}" for nonce in started):
            for file in top.glob(f"{RUN_DIR}/{stage.lower()}/{CHECKPOINT}*/{CHECKPOINT_MANIFEST}"):
                if (spot := _spot(file.relative_to(top).as_posix())) is not None:
                    found.append(Spot(spot.stage, spot.step, spot.path, file.parent))
    return found


def choose(found: Iterable[Spot], wanted: str) -> Spot | None:
    """The newest, or that of a step: of the later stage where both have it, from the machine where that has it."""
    fits = [spot for spot in found if wanted == LATEST or spot.step == int(wanted)]
    return max(fits, key=lambda spot: (TRAINING.index(spot.stage), spot.step, spot.here is None), default=None)


def listed(found: Iterable[Spot]) -> str:
    """`SFT 100, SFT 200, DPO 50`"""
    known = {(TRAINING.index(spot.stage), spot.step, spot.stage) for spot in found}
    return ", ".join(f"{stage} {step}" for _, step, stage in sorted(known)) or "none"


def copy(spot: Spot, to: Path) -> list[Output]:
    """One that lies here, copied into `to` and hashed there. Raises TransferFailed when it is damaged, OSError."""
    if spot.here is None:
        raise ValueError(f"{spot.path} is not here")
    manifest = spot.here / CHECKPOINT_MANIFEST
    try:
        promised = [(checked_path(file.path), file) for file in load(Checkpoint, manifest.read_bytes()).files]
    except ContractError as error:
        raise TransferFailed(f"{manifest}: {error}") from error
    copied = []
    for path, file in promised:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        part = (to / path).with_name(f"{path.name}.part")
        shutil.copyfile(spot.here / path, part)
        if hashing.sha256(part) != file.sha256:
            raise TransferFailed(f"{spot.here / path} is not what its {CHECKPOINT_MANIFEST} promises")
        part.replace(to / path)
        copied.append(file)
    shutil.copyfile(manifest, to / CHECKPOINT_MANIFEST)
    platform.sync_folder(to)
    own = to / CHECKPOINT_MANIFEST
    return [*copied, Output(CHECKPOINT_MANIFEST, own.stat().st_size, hashing.sha256(own))]


def _spot(path: str) -> Spot | None:
    """What a box or a folder name says, where it is a checkpoint's path and nothing else."""
    match = _SPOT.fullmatch(path)
    if match is None or match[2] != str(int(match[2])):
        return None
    stage = next(stage for stage in TRAINING if stage.lower() == match[1])
    return Spot(stage, int(match[2]), PurePosixPath(path).parent)
