"""The power switch of a box: which processes are its own, and ending them all."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from .boxspec import MARK

LOOK_EVERY_S = 5.0  # how often a box looks whether its sandbox lives
ORPHAN_AFTER_S = 120.0  # a box whose sandbox has been dead for so long switches itself off


def processes_of(home: Path, box_id: int) -> list[psutil.Process]:
    """Every process that was started in this box, however it was detached."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile
        if environ.get(MARK) == str(box_id) and environ.get("HOME") == str(home):
            found.append(process)
    return found


def switch_off(home: Path, box_id: int) -> None:
    """Kill every process of the box; returns when none is left."""
    while processes := processes_of(home, box_id):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                process.kill()
        psutil.wait_procs(processes, timeout=1.0)


class Orphanage:
    """Tells when the sandbox has been dead for too long, so that nothing is left running by a killed test."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._seen = self._looked = time.monotonic()

    def left_alone(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if self._pid_file.exists() and psutil.pid_exists(int(self._pid_file.read_text())):
                self._seen = now
        return now - self._seen > ORPHAN_AFTER_S
