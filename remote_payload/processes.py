"""Which process is which. A PID alone proves nothing: the kernel hands it to somebody else after a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """One process for all time: its PID, when it started, on which boot of the machine, and for which nonces."""

    pid: int
    pid_start: int
    boot_id: str
    nonces: list[str]

    def is_alive(self) -> bool:
        return self.boot_id == boot_id() and self.pid_start == start_ticks(self.pid)

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def own(nonces: list[str]) -> Identity:
        pid = os.getpid()
        return Identity(pid, start_ticks(pid) or 0, boot_id(), nonces)

    @staticmethod
    def read(path: Path) -> Identity | None:
        """The identity stored at `path`, None when there is no such file."""
        try:
            return Identity(**json.loads(path.read_text()))
        except FileNotFoundError:  # as promised above
            return None


def boot_id() -> str:
    """Changes at every boot of the machine. In a container it is the host's."""
    if sys.platform == "linux":
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return subprocess.run(
        ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
    ).stdout.strip()


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in the kernel's own unit; None when it is gone or only waits to be reaped."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # no such process
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
        return None if fields[0] in "ZX" else int(fields[19])
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    digits = "".join(c for c in listed.stdout if c.isdigit())
    return int(digits) if digits else None
