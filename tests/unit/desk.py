"""The commands of a daemon without drivers: a real database, a market that says what a test wrote down, a job file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from scripted_market import ScriptedMarket
from store import opened

from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control.commands import Commands
from daemon.control.operate import Operator
from daemon.control.world import World
from daemon.domain.records import Job, Lease
from daemon.settings import Paths, Settings
from daemon.store import jobs, leases

SPEC = """version: 1
name: bot
model: base
sft: {data: sft.jsonl, max_steps: 3}
verify: {level: hash}
"""


@dataclass
class Desk:
    """`folder` holds database, job file and data; `told` are the jobs whose drivers were told of a change."""

    folder: Path
    market: ScriptedMarket = field(default_factory=ScriptedMarket)
    clock: ManualClock = field(default_factory=ManualClock)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.database = opened(self.folder)
        settings = Settings(Paths(self.folder, self.folder, self.folder / "models"))
        operator = Operator(self.database, self.market, self.clock, settings)
        none = cast(Any, None)
        self.world = World(self.database, operator, self.clock, settings, none, none, verify)
        self.commands = Commands(self.world, self.told.append)
        rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(40)]
        (self.folder / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        (self.folder / "base").mkdir(exist_ok=True)
        (self.folder / "base/config.json").write_text("{}")

    async def submit(self, text: str = SPEC, request: str = "r1") -> Job:
        """As stored."""
        answer = await self.commands.submit(text, "job.yaml", str(self.folder), request)
        return self.job(answer["job"])

    def job(self, job: str) -> Job:
        with self.database.read() as c:
            return jobs.get(c, job)

    def leases(self, job: str) -> list[Lease]:
        with self.database.read() as c:
            return leases.of_job(c, job)

    def write(self, change: Callable[[Any], Any]) -> Any:
        with self.database.write() as c:
            return change(c)
