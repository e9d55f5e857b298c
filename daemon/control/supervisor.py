"""Keeps one driver per unfinished job alive, runs the reconcile loop, and looks at this computer every two seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from daemon import platform
from daemon.control import wake
from daemon.control.driver import Driver
from daemon.control.reconcile import Reconciler
from daemon.control.telling import Teller
from daemon.control.unwritable import Unwritable
from daemon.control.world import World
from daemon.domain import money
from daemon.domain.holds import HoldReason
from daemon.domain.records import Job
from daemon.domain.spec import from_canonical
from daemon.errors import Fenced, LostRace, StoreError
from daemon.store import jobs, leader, leases, operations, stages

log = structlog.get_logger()
CRASH_PAUSE_S = 5.0
STUCK_S = 300.0  # beyond its pause without the end of a reconcile pass, every call of which has a deadline: it hangs


def tell_nobody(*assignments: str) -> None:
    """For a daemon that no service manager watches."""


@dataclass
class Supervisor:
    """Owns every task of the daemon; `run` ends only by `stop` or when this process is fenced.

    `tell` speaks to the service manager in sd_notify's words, `addresses` are ours towards the world, `knock` asks
    whether it answers.
    """

    world: World
    reconciler: Reconciler
    tell: Callable[..., None] = tell_nobody
    addresses: Callable[[], frozenset[str]] = platform.outward_addresses
    knock: Callable[[str], Awaitable[bool]] = wake.opens
    wakefulness: wake.Wakefulness = field(default_factory=wake.Wakefulness)
    drivers: dict[str, Driver] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _fenced: BaseException | None = None
    _unwritable: Unwritable = field(init=False)
    _stuck_at: float = 0.0  # monotonic seconds; a reconcile pass that has not ended by then hangs

    def __post_init__(self) -> None:
        self._unwritable = Unwritable(self.world)

    async def run(self) -> None:
        """Raises Fenced when a newer daemon leads."""
        await self.reconciler.run_once()  # before any driver decides: unknown operations first
        self.adopt_jobs()
        self._after_pass()
        self._stuck_at = self.world.clock.mono() + STUCK_S
        self.tell("READY=1")
        loops = [asyncio.create_task(loop) for loop in (self._reconcile_loop(), self._look_loop(), self._news_loop())]
        try:
            await self._stopped.wait()
        finally:
            self.tell("STOPPING=1")
            for task in (*loops, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(*loops, *self._tasks.values(), return_exceptions=True)
            self.wakefulness.end()
        if self._fenced is not None:
            raise self._fenced

    def stop(self) -> None:
        self._stopped.set()

    def adopt_jobs(self) -> None:
        """A driver for every unfinished job that has none."""
        with self.world.database.read() as c:
            unfinished = jobs.unfinished(c)
        for job in unfinished:
            if job.id not in self._tasks:
                self._tasks[job.id] = asyncio.create_task(self._keep(job), name=f"job-{job.id}")

    def changed(self, job: str) -> None:
        """A command changed the row of `job`, or added it."""
        self.adopt_jobs()
        if driver := self.drivers.get(job):
            driver.interrupt()

    def hurry(self) -> None:
        """Reconcile now."""
        self.world.operator.acted.set()

    async def _keep(self, job: Job) -> None:
        """A defect in one job's driver, or in the making of it, holds that job and never touches another."""
        while True:
            try:
                if job.id not in self.drivers:
                    self.drivers[job.id] = Driver(self.world, job, from_canonical(job.spec_json))
                await self.drivers[job.id].run()
                break
            except Fenced as error:
                self._fenced = error
                self._stopped.set()
                return
            except StoreError as error:
                log.error("store.unusable", job=job.id, error=str(error))
                await asyncio.sleep(CRASH_PAUSE_S)
            except Exception as error:
                log.exception("job.crashed", job=job.id)
                self._hold_crashed(job.id, error)
                await asyncio.sleep(CRASH_PAUSE_S)
        del self.drivers[job.id], self._tasks[job.id]

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
                pause = self._pause()
                self._stuck_at = self.world.clock.mono() + pause + STUCK_S
                with contextlib.suppress(TimeoutError):  # nothing was sent: the pass is due all the same
                    async with asyncio.timeout(pause):
                        await acted.wait()
                acted.clear()
                await self.reconciler.run_once()
                self._after_pass()
                self._unwritable.over()
                for driver in list(self.drivers.values()):
                    driver.wake()
            except Fenced as error:
                self._fenced = error
                self._stopped.set()
                return
            except StoreError as error:
                log.error("store.unusable", error=str(error))
                if not isinstance(error, LostRace):  # a command was quicker, which is no fault
                    await self._unwritable.tell(error)
                await asyncio.sleep(CRASH_PAUSE_S)
            except Exception:  # without this loop nothing is confirmed and nothing late is found: it never ends
                log.exception("reconcile.crashed")
                await asyncio.sleep(CRASH_PAUSE_S)

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

    def _after_pass(self) -> None:
        """Once a reconcile pass has ended: what the service manager shows, and whether this computer may sleep."""
        with self.world.database.read() as c:
            held = leases.held(c)
            coming = [job.id for job in jobs.unfinished(c) if wake.comes_home(job, stages.of_attempt(c, job))]
            noted = leader.get_meta(c, "kept_awake") or ""
        kept = "1" if self.wakefulness.keep(coming) else ""
        if kept != noted:
            with self.world.database.write() as c:
                leader.put_meta(c, "kept_awake", kept)
        rate = sum(lease.rate for lease in held)
        self.world.news.set()
        self.tell(f"STATUS={len(self.drivers)} jobs, {len(held)} machines, {money.show(rate)}/h")

    async def _news_loop(self) -> None:
        """Tell the person after each pass, and at once when a driver has something for them."""
        teller = Teller(self.world)
        while True:
            await self.world.news.wait()
            self.world.news.clear()
            try:
                await teller.run_once()
            except Fenced:
                return  # the reconcile loop ends this process
            except Exception:  # without this loop nobody is told anything any more: it never ends
                log.exception("news.crashed")

    async def _look_loop(self) -> None:
        """On wake, and when the network comes back, every connection is made anew and everybody looks at once.

        It feeds the service manager's watchdog, and stops when reconciling hangs: then we are started anew.
        """
        clock = self.world.clock
        before = wake.look(clock, self.addresses, None)
        while True:
            await asyncio.sleep(wake.TICK_S)
            cut_off = any(driver.is_cut_off for driver in self.drivers.values())
            outside = await self.knock(self.world.settings.market_url) if cut_off else None
            now = wake.look(clock, self.addresses, outside)
            slept, came = wake.woke(before, now), wake.network_came(before, now)
            if slept or came or wake.door_opened(before, now):
                log.info("workstation.woke" if slept else "network.came")
                try:
                    await self.reconnect(every=slept or came)
                except Exception:  # without this loop no sleep is noticed and nobody feeds the watchdog: it never ends
                    log.exception("reconnect.crashed")
            if clock.mono() < self._stuck_at:
                self.tell("WATCHDOG=1")
            before = now

    async def reconnect(self, *, every: bool) -> None:
        """The old connections are worth nothing, and no pause between attempts is worth its time any more.

        Where only the market's door had been shut, a line that another job fills may have been why: those stay.
        """
        self.hurry()
        for driver in list(self.drivers.values()):
            if every or driver.is_cut_off:
                await driver.drop_link()
