"""What every driver and command shares; whatever lies outside this process is reached through it alone.

The market is a port (market/port.py), so are the three clocks, the boxes (`connect`) and the proof of a model
(`verify`, which runs a child process): the simulator brings its own of each, and nothing else differs there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.rebuild import Workshop
from daemon.artifacts.verify import Depth, Report, Say
from daemon.box.address import BoxAddress
from daemon.box.box import Box
from daemon.box.meter import CountBytes
from daemon.clock import DaemonClock
from daemon.control.operate import Operator
from daemon.settings import Settings
from daemon.store.database import Database
from remote_payload.contract import Manifest

Connect = Callable[[BoxAddress, CountBytes], Box]
Notify = Callable[[str, str, bool], Awaitable[bool]]  # title, text, whether it is a second try; delivered
Verify = Callable[[Path, Manifest, BaseIdentity, Depth, Say], Awaitable[Report]]


@dataclass
class World:
    """What every actor shares. `news` is set when there may be something to tell the person."""

    database: Database
    operator: Operator
    clock: DaemonClock
    settings: Settings
    notify: Notify
    connect: Connect
    verify: Verify
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def job_folder(self, job: str) -> Path:
        return self.settings.paths.job_folders / job

    def mirror_folder(self, job: str) -> Path:
        """Where what training has made so far is kept here; see mirror.py."""
        return self.settings.paths.models / f".rescue-{job}"

    @property
    def workshop(self) -> Workshop:
        """Where GGUF files are made on this computer."""
        return Workshop(self.settings.box_python, self.settings.paths.models / ".rebuild")
