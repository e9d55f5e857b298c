"""What a sandbox and the process of one of its boxes agree on: the spec of a box, and which file says what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

# In ``boxes/<id>/``, out of the box's reach.
SPEC_FILE = "box.json"
PROCESS_FILE = "process.json"  # pid and create_time of a box that listens
TRAFFIC_FILE = "traffic.json"
ORDERS = "orders"  # faults ordered, one file each
STRUCK_FILE = "struck"  # ids of the orders that struck, one a line

USER = "root"
MARK = "HOMEPORT_BOX"  # in the environment of every process of a box; with HOME it tells whose it is


@dataclass(frozen=True)
class BoxSpec:
    """What the sandbox tells a box.

    `address`: of the direct port; `ports`: direct and proxy; `listen_at`: unix seconds; `sandbox`: file with the
    pid of the sandbox of the day; `session_env`: all that a command sees; `env`: what onstart sees beside it.
    """

    id: int
    home: str
    address: str
    ports: tuple[int, int]
    listen_at: float
    sandbox: str
    session_env: dict[str, str]
    env: dict[str, str]
    onstart: str

    @classmethod
    def read(cls, folder: Path) -> BoxSpec:
        raw = json.loads((folder / SPEC_FILE).read_text())
        return cls(**{**raw, "ports": tuple(raw["ports"])})


def authorized_keys(home: Path) -> Path:
    return home / ".ssh" / "authorized_keys"


def host_key_file(home: Path) -> Path:
    return home / ".ssh" / "ssh_host_ed25519_key"


def onstart_log(home: Path) -> Path:
    return home / ".onstart.log"
