"""Keeps one driver per unfinished job alive, runs the reconcile loop, and notices that the workstation slept."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import structlog

from daemon.control.driver import Driver
from daemon.control.reconcile import Reconciler
from daemon.control.world import World
from daemon.domain.holds import HoldReason
from daemon.domain.spec import from_canonical
from daemon.errors import Fenced, StoreError
from daemon.store import jobs, leases, operations

log = structlog.get_logger()
TICK_S = 2.0
SLEPT_S = 5.0  # more time passed in the world than for us: the workstation slept
CRASH_PAUSE_S = 5.0


@dataclass
class Supervisor:
    """Owns every task of the daemon; `run` ends only by `stop` or when this process is fenced."""

    world: World
    reconciler: Reconciler
    drivers: dict[str, Driver] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _fenced: BaseException | None = None

    async def run(self) -> None:
        """Raises Fenced when a newer daemon leads."""
        await self.reconciler.run_once()  # before any driver decides: unknown operations first
        self.adopt_jobs()
        loops = [asyncio.create_task(self._reconcile_loop()), asyncio.create_task(self._clock_loop())]
        try:
            await self._stopped.wait()
        finally:
            for task in (*loops, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(*loops, *self._tasks.values(), return_exceptions=True)
        if self._fenced is not None:
            raise self._fenced

    def stop(self) -> None:
        self._stopped.set()

    def adopt_jobs(self) -> None:
        """A driver for every unfinished job that has none."""
        with self.world.database.read() as c:
            unfinished = jobs.unfinished(c)
        for job in unfinished:
            if job.id not in self.drivers:
                driver = Driver(self.world, job, from_canonical(job.spec_json))
                self.drivers[job.id] = driver
                self._tasks[job.id] = asyncio.create_task(self._keep(driver), name=f"job-{job.id}")

    def changed(self, job: str) -> None:
        """A command changed the row of `job`, or added it."""
        self.adopt_jobs()
        if driver := self.drivers.get(job):
            driver.interrupt()

    def hurry(self) -> None:
        """Reconcile now."""
        self.world.operator.acted.set()

    async def _keep(self, driver: Driver) -> None:
        """A defect in one job's driver holds that job and never touches another."""
        while True:
            try:
                await driver.run()
                break
            except Fenced as error:
                self._fenced = error
                self._stopped.set()
                return
            except StoreError as error:
                log.error("store.unusable", job=driver.job_id, error=str(error))
                await asyncio.sleep(CRASH_PAUSE_S)
            except Exception as error:
                log.exception("job.crashed", job=driver.job_id)
                self._hold_crashed(driver.job_id, error)
                await asyncio.sleep(CRASH_PAUSE_S)
        del self.drivers[driver.job_id], self._tasks[driver.job_id]

    def _hold_crashed(self, job_id: str, error: Exception) -> None:
        w = self.world
        detail = f"{type(error).__name__}: {error}"[:500]
        try:
            with w.database.write() as c:
                job = jobs.get(c, job_id)
                if not job.state.is_terminal and job.hold_reason is None:
                    jobs.hold(c, job, HoldReason.INTERNAL, detail, w.clock.wall_ms(), w.database.epoch)
        except StoreError as unusable:  # a full disk, or a command was quicker: the driver looks again, and so do we
            log.error("store.unusable", job=job_id, error=str(unusable))

    async def _reconcile_loop(self) -> None:
        acted = self.world.operator.acted
        while True:
            try:
                with contextlib.suppress(TimeoutError):  # nothing was sent: the pass is due all the same
                    await asyncio.wait_for(acted.wait(), self._pause())
                acted.clear()
                await self.reconciler.run_once()
            except Fenced as error:
                self._fenced = error
                self._stopped.set()
                return
            except Exception:  # without this loop nothing is confirmed and nothing late is found: it never ends
                log.exception("reconcile.crashed")
                await asyncio.sleep(CRASH_PAUSE_S)
                continue
            for driver in list(self.drivers.values()):
                driver.wake()

    def _pause(self) -> float:
        """Quicker while something is being made, confirmed or resolved; slower, but never never, when nothing bills."""
        timing = self.world.settings.timing
        if not self._anything_billable():
            return timing.idle_every
        with self.world.database.read() as c:
            unsettled = any(op.kind != "stage_start" for op in operations.open_ones(c)) or any(
                lease.status != "running" or lease.absent_count for lease in leases.held(c)
            )
            destroying = any(
                op.kind == "destroy" and not op.state.is_open
                for lease in leases.held(c)
                for op in operations.of_lease(c, lease.id)
            )
        return timing.poll_every if unsettled or destroying else timing.reconcile_every

    def _anything_billable(self) -> bool:
        with self.world.database.read() as c:
            due = leases.recheck_due(c, self.world.clock.wall_ms())
            return bool(leases.held(c) or operations.open_ones(c) or jobs.unfinished(c) or due)

    async def _clock_loop(self) -> None:
        """On wake every connection is dropped and the market is asked at once; no counter runs through sleep."""
        clock = self.world.clock
        mono, boot = clock.mono(), clock.boot()
        while True:
            await asyncio.sleep(TICK_S)
            awake, passed = clock.mono() - mono, clock.boot() - boot
            mono, boot = clock.mono(), clock.boot()
            if passed - awake > SLEPT_S or awake > TICK_S + 10:
                log.info("workstation.woke", slept_s=round(passed - TICK_S))
                for driver in list(self.drivers.values()):
                    await driver.drop_link()
                self.hurry()
