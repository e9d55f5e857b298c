"""What this computer does to us: it sleeps, it loses the network and finds it again, and it must not sleep now.

Two looks at the clock, addresses and, while a box is out of contact, at the market's door are compared, so no event of
the system is needed and none can be missed. All that comes of a change is that connections are made anew and that
everybody looks at once: nothing is held or failed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from daemon import platform
from daemon.clock import DaemonClock
from daemon.domain.lifecycle import JobState
from daemon.domain.records import Job, StageRun

log = structlog.get_logger()
TICK_S = 2.0  # between two looks
KNOCK_S = 2.0  # for a connection to the market's host: a network that has just come back answers within


@dataclass(frozen=True)
class Look:
    """One look: since when we have been awake, and our addresses towards the world (none: no network).

    `outside`: whether the market's host takes a connection; None while nobody has a reason to ask.
    """

    awake_since_ms: int
    addresses: frozenset[str]
    outside: bool | None = None


def look(clock: DaemonClock, addresses: Callable[[], frozenset[str]], outside: bool | None) -> Look:
    return Look(clock.awake_since_ms(), addresses(), outside)


async def opens(url: str) -> bool:
    """Whether the host of `url` takes a connection: the cheapest question to the world. Nothing is sent."""
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(KNOCK_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 443)
    except OSError:  # refused, unreachable, no answer in time: it does not
        return False
    writer.transport.abort()
    return True


def woke(before: Look, now: Look) -> bool:
    """Asleep or stopped between the two looks: every connection is in doubt."""
    return now.awake_since_ms != before.awake_since_ms


def network_came(before: Look, now: Look) -> bool:
    """An address that was not there before: the network is back, or is another one."""
    return bool(now.addresses - before.addresses)


def door_opened(before: Look, now: Look) -> bool:
    """The market's door was shut: what lies beyond it may be in reach again."""
    return before.outside is False and now.outside is True


def comes_home(job: Job, runs: Iterable[StageRun]) -> bool:
    """Between a finished model and its destroyed machine sleep costs money: only then is this computer kept awake."""
    if job.hold_reason is not None:
        return False  # a person is waited for, who may well sleep
    if job.state is JobState.GGUF:
        return any(run.stage == "GGUF" and run.done_at is not None for run in runs)
    return job.state in (JobState.DOWNLOADED, JobState.VERIFIED)


@dataclass
class Wakefulness:
    """Keeps this computer awake while `jobs` come home. `begin` raises OSError where that cannot be done."""

    begin: Callable[[str], platform.KeptAwake] = platform.KeptAwake
    _kept: platform.KeptAwake | None = None
    _for: tuple[str, ...] = ()
    _agreed: bool = False  # it still held at a later look: the system did not refuse

    def keep(self, jobs: Iterable[str]) -> bool:
        """Whether it is kept awake. A refusal is logged once for the same jobs, and is no failure."""
        wanted = tuple(sorted(jobs))
        agreed = self._agreed
        self._agreed = self._kept is not None and self._kept.holds
        if not wanted:
            self.end()
        elif self._kept is None and wanted != self._for:
            try:
                self._kept = self.begin(f"bringing home {', '.join(wanted)}")
            except OSError as error:
                log.info("workstation.may_sleep", why=str(error))
        if self._kept is not None and not self._kept.holds:
            why = "its tool ended" if agreed else "the system refused to stay awake"
            log.info("workstation.may_sleep", why=why)
            self._kept.end()
            self._kept = None
            if agreed:
                wanted = ()  # asked for again at the next look
        self._for = wanted
        return self._kept is not None

    def end(self) -> None:
        if self._kept is not None:
            self._kept.end()
            self._kept = None
