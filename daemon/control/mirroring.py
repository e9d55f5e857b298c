"""Bringing home what training makes, in the background while the box is watched, or at once when the plan asks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from daemon.box.box import Box
from daemon.box.pace import Pace
from daemon.control.mirror import TRAINING, Mirror
from daemon.control.world import World
from daemon.domain.records import BoxReport, StageRun
from daemon.errors import BoxError
from daemon.store import events
from remote_payload.contract import ContractError, Status, load

log = structlog.get_logger()
SHARE = 0.5  # of limits.line, while somebody may use the line for other things


@dataclass
class Mirroring:
    """Of one job. One bringing at a time: two would write the same files."""

    world: World
    job_id: str
    line: float | None  # limits.line, Mb/s
    _task: asyncio.Task[None] | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def mirror(self) -> Mirror:
        return Mirror(self.world.mirror_folder(self.job_id))

    def follow(self, box: Box, runs: Sequence[StageRun], report: BoxReport | None) -> None:
        """Begin to bring what is new there, unless that is under way. What ails it is noted, and tried again."""
        status = load(Status, report.status_json) if report is not None and report.status_json else None
        trained = [run for run in runs if run.stage in TRAINING]
        new = self.mirror.lacks_outputs(trained) or any(self.mirror.lacks_checkpoint(run, status) for run in trained)
        if new and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._try(box, trained, status))

    async def bring(
        self, box: Box, runs: Sequence[StageRun], status: Status | None, *, pace: Pace | None = None
    ) -> int:
        """Every finished stage's outputs and the newest checkpoint of the one that runs. Returns the files brought.

        Raises LinkLost, TransferFailed, ContractError, OSError of the local disk.
        """
        mirror, count = self.mirror, 0
        async with self._lock:
            for run in mirror.lacks_outputs(runs):
                count += await mirror.bring_outputs(box, run, pace)
                self._note("stage.home", stage=run.stage)
            for run in runs:
                if (path := mirror.lacks_checkpoint(run, status)) is not None and status is not None:
                    count += await mirror.bring_checkpoint(box, run, path, pace)
                    self._note("checkpoint.home", stage=run.stage, step=int(path.name.removeprefix("checkpoint-")))
        return count

    async def stop(self) -> None:
        """End what runs in the background; what is whole here stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def forget_checkpoints(self) -> None:
        """The job is over. What cannot be deleted stays, and is said."""
        try:
            self.mirror.forget_checkpoints()
        except OSError as error:
            log.warning("mirror.kept", job=self.job_id, error=str(error))

    async def _try(self, box: Box, runs: Sequence[StageRun], status: Status | None) -> None:
        try:
            await self.bring(box, runs, status, pace=Pace.on_line(self.line, SHARE))
        except (BoxError, ContractError, OSError) as error:
            log.info("mirror.failed", job=self.job_id, error=str(error))

    def _note(self, kind: str, **body: Any) -> None:
        with self.world.database.write() as c:
            events.add(c, kind, self.world.clock.wall_ms(), job=self.job_id, **body)
