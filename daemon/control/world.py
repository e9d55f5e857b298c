"""What every driver and command shares."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.clock import Clock
from daemon.control.operate import Operator
from daemon.settings import Settings
from daemon.store.database import Database


@dataclass
class World:
    """What every actor shares."""

    database: Database
    operator: Operator
    clock: Clock
    settings: Settings
    notify: Callable[[str, str], Awaitable[None]]

    def job_folder(self, job: str) -> Path:
        return self.settings.paths.job_folders / job
