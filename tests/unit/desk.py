"""The commands of a daemon: a real database, a market that says what a test wrote down, a job file; and one driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from scripted_market import ScriptedMarket
from store import add_lease, opened

from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control.acts import act
from daemon.control.commands import Commands
from daemon.control.driver import Driver
from daemon.control.operate import Operator
from daemon.control.world import World
from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.records import Job, Kind, Lease, Operation
from daemon.domain.snapshot import Snapshot
from daemon.domain.spec import from_canonical
from daemon.settings import Paths, Settings
from daemon.store import jobs, leases, operations

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


@dataclass
class Counter:
    """`desk` with a job in QUEUED and its driver, which does one act at a time; pauses are not waited for."""

    desk: Desk
    job: Job
    driver: Driver
    pauses: list[float] = field(default_factory=list)

    @classmethod
    async def open(cls, folder: Path, text: str = SPEC) -> Counter:
        desk = Desk(folder)
        job = await desk.submit(text)
        found = cls(desk, job, Driver(desk.world, job, from_canonical(job.spec_json)))

        async def wait(seconds: float) -> None:
            found.pauses.append(seconds)

        found.driver.bell.wait = wait  # type: ignore[method-assign]
        return found

    def look(self) -> Snapshot:
        return self.driver._look()

    async def do(self, action: actions.Action) -> None:
        await act(self.driver.acting, self.look(), action)

    def machine(self, **values: Any) -> Lease:
        given = {"machine_id": 5} | values
        with self.desk.database.write() as c:
            return leases.get(c, add_lease(c, self.job.id, **given))

    def operations(self, kind: Kind) -> list[Operation]:
        with self.desk.database.read() as c:
            return [op for op in operations.of_job(c, self.job.id) if op.kind is kind]

    @property
    def creates(self) -> list[Operation]:
        return self.operations(Kind.CREATE)

    @property
    def held(self) -> HoldReason | None:
        return self.look().job.hold_reason
