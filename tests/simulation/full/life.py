"""One life of the daemon: what app.py builds, from the same parts, with the simulation at its ports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from daemon import platform
from daemon.app import open_store, supervise, take_leadership
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.hashing import sha256
from daemon.artifacts.layout import local_path
from daemon.artifacts.levels import BEHAVIOUR, BYTES, IDENTITY, Level, failed, not_run, passed
from daemon.artifacts.verify import Depth, Report, Say
from daemon.clock import SteadyClock
from daemon.control.commands import Commands
from daemon.control.operate import Operator
from daemon.control.wake import Wakefulness
from daemon.control.world import World
from daemon.errors import Fenced
from remote_payload.contract import Manifest

from .loop import AT, Life

if TYPE_CHECKING:
    from .simulation import Simulation


ADDRESSES = frozenset({"192.0.2.7"})  # ours towards the world; not those of the computer that simulates


def _may_sleep(why: str) -> platform.KeptAwake:
    """The true one starts a process, which ends in the time of this computer: no seed would replay."""
    raise OSError("a simulated workstation may sleep")


class Daemon:
    """The parts of one life. `run` returns when it was fenced; a life that is killed never returns."""

    def __init__(self, sim: Simulation, life: Life) -> None:
        self.sim, self.life, self.clock = sim, life, SteadyClock(sim.clock)
        self.database = open_store(sim.settings.paths, self.clock.wall_ms())
        self.commands: Commands | None = None

    async def run(self) -> None:
        sim, clock, settings = self.sim, self.clock, self.sim.settings
        take_leadership(self.database, platform.machine_id(), clock)
        self.life.epoch = self.database.epoch
        sim.leads(self.life)
        operator = Operator(self.database, sim.market, clock, settings)
        world = World(self.database, operator, clock, settings, self._notify, sim.boxes.connect, prover(sim))
        supervisor = supervise(world)
        supervisor.addresses = lambda: ADDRESSES
        supervisor.wakefulness = Wakefulness(_may_sleep)
        supervisor.knock = _answers
        self.commands = Commands(world, supervisor.changed)
        try:
            await supervisor.run()
        except Fenced:
            sim.say(str(self.life), "is fenced, and ends")
        self.commands = None
        self.database.close()

    async def _notify(self, title: str, text: str, again: bool) -> bool:
        self.sim.told.append(title)
        return True


async def _answers(url: str) -> bool:
    """The world outside never falls silent as a whole here: what is lost is lost call by call."""
    return True


def prover(sim: Simulation) -> Callable[[Path, Manifest, BaseIdentity, Depth, Say], Awaitable[Report]]:
    """Stands for L0 to L5: presence and bytes are really read, what needs a true GGUF is decided by the sky."""

    async def verify(folder: Path, manifest: Manifest, base: BaseIdentity, depth: Depth, say: Say) -> Report:
        AT.set("verify")
        await asyncio.sleep(5.0)
        sim.at_boundary("verify")
        wrong = [f.path for f in manifest.files if not _whole(local_path(folder, f.path), f.sha256)]
        levels: list[Level] = [failed(BYTES, wrong[0]) if wrong else passed(BYTES, {})]
        if not wrong:
            stranger = sim.sky.strikes("wrong model")
            levels.append(failed(IDENTITY, "another model") if stranger else passed(IDENTITY, {}))
            levels.append(not_run(BEHAVIOUR, "simulated"))
        for level in levels:
            say(level)
        good = all(level.passed or not level.ran for level in levels)
        return Report(good, depth, tuple(levels))

    return verify


def _whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest
