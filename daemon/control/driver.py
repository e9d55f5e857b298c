"""The actor of one job: load, plan, act, record, until the job is terminal.

One asyncio task owns one job's row. Being out of contact is never a failure; only the box's own word about its work, or
the market's about the machine, is. What can go wrong is translated here, once, into what the job does about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from dataclasses import replace
from pathlib import Path

import structlog

from daemon.control import permits, quotes, snapshot
from daemon.control.acting import Acting
from daemon.control.acts import act
from daemon.control.bell import PAUSE_S, Bell
from daemon.control.jobfile import data_sets
from daemon.control.link import Link
from daemon.control.mirroring import Mirroring
from daemon.control.rebuilding import Rebuilding
from daemon.control.world import World
from daemon.domain import actions
from daemon.domain.evidence import silence_began
from daemon.domain.holds import ANSWERS, HoldReason
from daemon.domain.plan import plan, silence_limit
from daemon.domain.records import Job
from daemon.domain.snapshot import Snapshot
from daemon.domain.spec import JobSpec
from daemon.errors import (
    AccessDenied,
    BoxError,
    CredentialsRefused,
    Fenced,
    HomeportError,
    HostKeyChanged,
    LinkLost,
    LostRace,
    MarketError,
    MarketUnreachable,
    RateLimited,
    TransferFailed,
)
from daemon.store import downloads, events, leases, reports
from remote_payload.contract import ContractError

log = structlog.get_logger()
LONG = (actions.Provision, actions.Download, actions.Save)  # may last for hours, and no ring ends them
CUTS = (actions.HoldJob, actions.StopMachine)  # decided while one lasts: it goes on spending what is not there
# What a disk answers that is full, or does not take what is written to it.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EXDEV, errno.EACCES, errno.EPERM)
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts to reach a box; 30 s for as long as it takes


class Driver:
    """Drives one job. `wake` asks for a new decision soon, `interrupt` cuts short what may be done again."""

    def __init__(self, world: World, job: Job, spec: JobSpec) -> None:
        rows = {kind: data.rows for kind, data in data_sets(job).items()}
        with world.database.read() as c:
            line = downloads.measured_line(c)
            report = reports.get(c, job.id)
        estimated = quotes.expected(spec, Path(job.spec_dir), rows, line=line)
        self.world, self.job_id = world, job.id
        self.memory = snapshot.Memory(link_down_since_ms=report.lost_since if report else None)
        self.link, self.bell = Link(world, spec.limits.hold), Bell()
        mirroring = Mirroring(world, job.id, spec.limits.line)
        rebuilding = Rebuilding(world, job.id, spec, rows, mirroring)
        self.acting = Acting(world, job.id, spec, rows, self.memory, self.link, self.bell, mirroring, rebuilding)
        self.rules, self._estimated = snapshot.rules(spec, estimated, world.settings.timing), estimated
        self._said: tuple[str, str] | None = None
        self._doing: actions.Action | None = None

    def wake(self) -> None:
        """The market was listed. An act that would go on for hours ends when there is no more money for it."""
        if isinstance(self._doing, LONG) and isinstance(self._decided(), CUTS):
            self.bell.interrupt()
        else:
            self.bell.ring()

    def interrupt(self) -> None:
        """A person's command changed the job."""
        self.bell.interrupt()

    @property
    def is_cut_off(self) -> bool:
        """The last attempt to reach the box failed."""
        return self.link.failures > 0

    async def drop_link(self) -> None:
        """After a sleep the old connection is worth nothing, nor is an attempt that hangs since before it.

        A proof needs no connection, and would begin anew with each network that comes and goes.
        """
        await self.link.drop()
        self.link.failures = 0
        if isinstance(self._doing, actions.Verify):
            self.bell.ring()
        else:
            self.bell.interrupt()

    async def run(self) -> None:
        """Until the job is terminal. Raises Fenced when another daemon leads."""
        try:
            while not (s := self._look()).job.state.is_terminal:
                await self._perform(s, plan(s))
        finally:
            await self.acting.rebuilding.close()
            await self.acting.mirroring.stop()
            await self.link.drop()

    def _look(self) -> Snapshot:
        """The reserve is that of its machine: the estimate knows none, and a price only by `limits.price`.

        The box hears with the next call what the hold under way has left for a silence of ours.
        """
        s = snapshot.take(self.world.database, self.world.clock, self.job_id, self.rules, self.memory)
        if s.lease is None:
            return s
        self.link.silence_limit = silence_limit(s, s.lease)
        reserve = self._estimated.reserve_at(s.lease.price_per_hour, s.lease.up_per_gb)
        return replace(s, rules=replace(s.rules, reserve=reserve))

    def _decided(self) -> actions.Action | None:
        try:
            return plan(self._look())
        except HomeportError:  # it meets the driver itself when it looks next
            return None

    async def _perform(self, s: Snapshot, action: actions.Action) -> None:
        """Do one action; a command of the person ends an interruptible one early."""
        said = (type(action).__name__, getattr(action, "why", ""))
        if said != self._said:
            self._said = said
            log.info("job.action", job=self.job_id, action=said[0], why=said[1])
        self.bell.interrupted.clear()
        doing = asyncio.ensure_future(self._guarded(s, action))
        if not action.interruptible:
            await doing
            return
        stop = asyncio.ensure_future(self.bell.interrupted.wait())
        self._doing = action
        try:
            await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._doing = None
            stop.cancel()
            if not doing.done():
                doing.cancel()
                await asyncio.gather(doing, return_exceptions=True)
        if not doing.cancelled():
            doing.result()

    async def _guarded(self, s: Snapshot, action: actions.Action) -> None:
        """Translate what can go wrong into what the job does about it."""
        try:
            await act(self.acting, s, action)
            if isinstance(action, actions.TALKS_TO_BOX):
                self._reached(s)
        except LostRace:
            return  # somebody else changed the row: decide again
        except Fenced:
            raise
        except LinkLost as error:
            await self._out_of_contact(s, error)
        except AccessDenied as error:
            await self.acting.attach_key(s)
            await self._out_of_contact(s, error)
        except HostKeyChanged as error:
            await self._hold(s, HoldReason.HOST_KEY, str(error))
        except permits.ArtifactLost as error:
            self.acting.artifact_lost(s, str(error))
        except (TransferFailed, ContractError) as error:
            await self._failed(s, action, HoldReason.TRANSFER_FAILED, str(error))
        except CredentialsRefused as error:
            await self._hold(s, HoldReason.CREDENTIALS, str(error))
        except RateLimited as error:
            await self.bell.wait(min(error.retry_after_s, 60.0))
        except MarketUnreachable:  # its operation is UNKNOWN already; the market is asked again
            await self.bell.wait(PAUSE_S)
        except OSError as error:
            if error.errno not in DISK and not isinstance(action, actions.Save):
                raise
            await self._failed(s, action, HoldReason.DISK_FULL, str(error))
        except MarketError as error:
            if not isinstance(action, actions.Destroy):  # that is refused in its operation: the plan asks again
                await self._hold(s, HoldReason.INTERNAL, f"{type(error).__name__}: {error}")
        except (BoxError, permits.NoPermit) as error:
            await self._failed(s, action, HoldReason.INTERNAL, f"{type(error).__name__}: {error}")

    async def _hold(self, s: Snapshot, reason: HoldReason, detail: str) -> None:
        """Held for that already: the person was told, the hold's price limit runs on, and the next try waits.

        A hold that answers the person stands: to resume from another would forget what they asked for.
        """
        if s.job.hold_reason is reason or s.job.hold_reason in ANSWERS:
            await self.bell.wait(PAUSE_S)
            return
        with contextlib.suppress(LostRace):  # somebody spoke meanwhile: decide again
            self.acting.hold(s, reason, detail)

    async def _failed(self, s: Snapshot, action: actions.Action, reason: HoldReason, why: str) -> None:
        """A hold that saves goes on as what it is: another in its place would save nothing and advise another way."""
        if not isinstance(action, actions.Save):
            await self._hold(s, reason, why)
            return
        with self.world.database.write() as c:
            events.add(c, "save.failed", self.world.clock.wall_ms(), job=self.job_id, why=why[:500])
        log.warning("save.failed", job=self.job_id, why=why)
        self.world.news.set()
        await self.bell.wait(PAUSE_S)

    async def _out_of_contact(self, s: Snapshot, error: BoxError) -> None:
        """Silence is not failure: noted once, tried again for ever, from the market's newest address."""
        w = self.world
        now = w.clock.wall_ms()
        seen = now
        if s.lease is not None:
            with w.database.read() as c:  # a call takes longer than a pass: as it is now
                seen = leases.get(c, s.lease.id).last_seen or 0
        heard = self.link.heard(now, self.memory.link_down_since_ms)
        self.memory.silent_since_ms = silence_began(self.memory.silent_since_ms, now, heard=heard, last_seen_ms=seen)
        if self.memory.link_down_since_ms is None:
            self.memory.link_down_since_ms = now
            with w.database.write() as c:
                if s.lease is not None and s.lease.host_key is not None:  # before the first login it is only booting
                    reports.put(c, self.job_id, s.job.attempt, lost_since=now)
                events.add(c, "box.out_of_contact", now, job=self.job_id, why=str(error)[:200])
            log.info("box.out_of_contact", job=self.job_id, why=str(error))
        self.link.lost()
        await self.link.drop()
        self.link.failures += 1
        await self.bell.wait(BACKOFF_S[min(self.link.failures, len(BACKOFF_S)) - 1])

    def _reached(self, s: Snapshot) -> None:
        if not self.link.is_made or self.memory.link_down_since_ms is None:
            return
        away_ms = self.world.clock.wall_ms() - self.memory.link_down_since_ms
        self.memory.link_down_since_ms = self.memory.silent_since_ms = None
        self.link.failures = 0
        with self.world.database.write() as c:
            reports.put(c, self.job_id, s.job.attempt, lost_since=None)
            events.add(c, "box.reconnected", self.world.clock.wall_ms(), job=self.job_id, after_ms=away_ms)
