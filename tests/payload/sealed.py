"""A small whole checkpoint, for tests of what becomes of it."""

from __future__ import annotations

from pathlib import Path

from remote_payload import checkpoints
from remote_payload.contract import Stage
from remote_payload.fingerprint import Fingerprint

MARK = Fingerprint({"lr": "0.0001", "seed": "42"})


def sealed(stage_folder: Path, step: int, mark: Fingerprint = MARK) -> Path:
    folder = stage_folder / f"checkpoint-{step}"
    (folder / "ref").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"moments" * step)
    (folder / "ref/adapter.safetensors").write_bytes(b"weights" * step)
    checkpoints.seal(folder, Stage.SFT, step, mark)
    return folder
