"""Bringing home what training makes, in the background while the box is watched, or at once when the plan asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import structlog

from daemon.box.box import Box
from daemon.box.pace import Pace
from daemon.control.mirror import TRAINING, CheckpointGone, Mirror
from daemon.control.transfers import told
from daemon.control.world import World
from daemon.domain.records import BoxReport, StageRun
from daemon.errors import BoxError, LinkLost, TransferFailed
from daemon.store import downloads, events, leases
from remote_payload.contract import ContractError, Status, load

log = structlog.get_logger()
MEASURABLE_S = 5.0  # bytes are counted once a second
SHARE = 0.5  # of limits.line, while somebody may use the line for other things


@dataclass
class Mirroring:
    """Of one job. One bringing at a time: two would write the same files."""

    world: World
    job_id: str
    line: float | None  # limits.line, Mb/s
    _task: asyncio.Task[None] | None = None
    _ailing: object = None  # what the person was told last
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
        """Every finished stage's outputs and the newest checkpoint of the one that runs. Returns the files here now.

        Raises LinkLost, CheckpointGone, TransferFailed, ContractError, OSError of the local disk.
        """
        mirror = self.mirror
        async with self._lock:
            for run in mirror.lacks_outputs(runs):
                with self._timed(pace), told(self.world, self.job_id, "MIRROR") as follow:
                    await mirror.bring_outputs(box, run, pace, follow)
                self._note("stage.home", stage=run.stage)
            for run in runs:
                if (newest := mirror.lacks_checkpoint(run, status)) is not None:
                    await self._bring_checkpoint(box, run, newest, pace)
        return await asyncio.to_thread(mirror.count)

    async def _finish_begun(self, box: Box, runs: Sequence[StageRun], status: Status | None, pace: Pace | None) -> bool:
        """Bring the rest of the checkpoint that a cut interrupted: on a slow line each newest one would be cut again.

        Whether it is home. Not while finished outputs are to come, and not where somebody waits: they want the newest.
        """
        async with self._lock:
            if self.mirror.lacks_outputs(runs):
                return False
            for run in runs:
                begun, newest = self.mirror.begun(run), self.mirror.lacks_checkpoint(run, status)
                if begun is not None and newest not in (None, begun):
                    with suppress(TransferFailed):  # deleted or damaged there: the newest one is as good
                        await self._bring_checkpoint(box, run, begun, pace)
                        return True
        return False

    async def _bring_checkpoint(self, box: Box, run: StageRun, path: PurePosixPath, pace: Pace | None) -> None:
        with self._timed(pace), told(self.world, self.job_id, "MIRROR") as follow:
            await self.mirror.bring_checkpoint(box, run, path, pace, follow)
        self._note("checkpoint.home", stage=run.stage, step=int(path.name.removeprefix("checkpoint-")))

    @contextmanager
    def _timed(self, pace: Pace | None) -> Iterator[None]:
        """Note what the line carried meanwhile, where nothing held it back and it took long enough to tell."""
        before, began = self._bytes_down(), self.world.clock.mono()
        yield
        took_s, came = self.world.clock.mono() - began, self._bytes_down() - before
        if pace is None and took_s >= MEASURABLE_S and came >= downloads.MEASURABLE_BYTES:
            self._note("line.measured", mbps=round(came * 8 / 1e6 / took_s, 1))

    def _bytes_down(self) -> int:
        with self.world.database.read() as c:
            return sum(lease.bytes_down for lease in leases.of_job(c, self.job_id))

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
        """Whatever goes wrong here, training goes on; the person is told once, for a host that goes then costs more."""
        try:
            pace = Pace.on_line(self.line, SHARE)
            if not await self._finish_begun(box, runs, status, pace):
                await self.bring(box, runs, status, pace=pace)
            self._ailing = None
        except (LinkLost, CheckpointGone) as error:  # out of contact is told elsewhere; a newer checkpoint comes next
            log.info("mirror.failed", job=self.job_id, error=str(error))
        except Exception as error:
            why = str(error) if isinstance(error, BoxError | ContractError | OSError) else repr(error)
            log.warning("mirror.failed", job=self.job_id, error=why, exc_info=error)
            # A full disk says how much is free, which differs each time and is no news.
            ails = (type(error), error.errno) if isinstance(error, OSError) else why
            if ails != self._ailing:
                self._ailing = ails
                self._note("mirror.failed", why=why[:500])
                self.world.news.set()

    def _note(self, kind: str, **body: Any) -> None:
        with self.world.database.write() as c:
            events.add(c, kind, self.world.clock.wall_ms(), job=self.job_id, **body)
