"""The file beside the database that outlives a restored backup: how far we had come, and which machines are ours.

It is in no backup. Standard library only: `jobctl` reads the install id from it when the database is gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from daemon import platform

NAME = "high-water"  # beside the database


@dataclass(frozen=True)
class HighWater:
    """The newest `epoch` and event id that a leader of this installation saw, and the folder that it led in.

    `install` and `folder`: '' in files of old.
    """

    epoch: int
    event: int
    machine_id: str
    install: str = ""
    folder: str = ""


def read(path: Path) -> HighWater | None:
    """None where there is no such file. Raises ValueError when it is there and makes no sense."""
    if not path.exists():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(raw, dict) or type(raw.get("epoch")) is not int or type(raw.get("event")) is not int:
        raise ValueError(f"{path} names no epoch and no event")
    words = (str(raw.get(name, "")) for name in ("machine_id", "install", "folder"))
    return HighWater(raw["epoch"], raw["event"], *words)


def write(path: Path, reached: HighWater) -> None:
    """Whole or not at all. Raises OSError."""
    beside = path.with_suffix(".tmp")
    with open(beside, "w", encoding="utf-8") as f:
        json.dump(asdict(reached), f)
        f.flush()
        platform.sync_file(f.fileno())
    beside.replace(path)
    platform.sync_folder(path.parent)
