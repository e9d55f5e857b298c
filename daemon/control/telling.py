"""Tells the person what is new, each piece once: what was told is kept in the database, so nothing is said again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from daemon.control import snapshot
from daemon.control.world import World
from daemon.domain.news import DAY_MS, Facts, News, of_job, of_market, of_orphan, of_returned
from daemon.domain.plan import LINGERS
from daemon.domain.records import Job, Kind, Lease, Operation, OpState
from daemon.domain.spec import from_canonical
from daemon.store import events, jobs, leader, leases, operations, reports

log = structlog.get_logger()
AGAIN_S = 30.0  # after the first try that did not arrive; doubled with each further one
SELDOM_S = 3600.0


@dataclass
class Teller:
    """One at a time; the supervisor says when."""

    world: World
    _tried: dict[str, int] = field(default_factory=dict)  # how often, of what is not yet delivered everywhere
    _due: dict[str, float] = field(default_factory=dict)  # by the boot clock

    async def run_once(self) -> None:
        """Tell everything that is new. What does not arrive is told again, ever more seldom: perhaps it did arrive."""
        for news in self._news():
            if self._due.get(news.key, 0.0) > self.world.clock.boot():
                continue
            tries = self._tried.get(news.key, 0)
            self._tried[news.key] = tries + 1
            self._due[news.key] = self.world.clock.boot() + again_s(tries)
            if await self.world.notify(news.title, news.text, tries > 0):
                with self.world.database.write() as c:
                    leader.put_meta(c, _mark(news), str(self.world.clock.wall_ms()))

    def _news(self) -> list[News]:
        now = self.world.clock.wall_ms()
        with self.world.database.read() as c:
            told_of = [*jobs.unfinished(c), *jobs.ended_since(c, now - DAY_MS)]
            found = [news for job in told_of for news in of_job(self._facts(c, job, now))]
            found += [news for lease in leases.held(c) for news in _of_lease(c, lease)]
            found += _of_market(c, now)
            return [news for news in found if leader.get_meta(c, _mark(news)) is None]

    def _facts(self, c: Connection, job: Job, now: int) -> Facts:
        rented = tuple(leases.of_job(c, job.id))
        live = next((lease for lease in rented if lease.state == "LIVE"), None)
        report = reports.get(c, job.id)
        lost_since = report.lost_since if report is not None else None
        is_its = live is not None and lost_since is not None and lost_since >= live.created_at  # not an earlier one's
        unsaved = _failed(c, job.id, "save.failed", "job.saved", "job.released")
        spec = from_canonical(job.spec_json)
        return Facts(
            now_ms=now,
            job=job,
            leases=rented,
            cost_limit=spec.limits.cost,
            loss_ms=snapshot.loss_ms(c, live, now),
            lost_since=lost_since if is_its else None,
            silence_ms=round(self.world.settings.timing.silence * 1000),
            awake_since_ms=self.world.clock.awake_since_ms(),
            asks=spec.destroy == "ask",
            not_mirrored=_failed(c, job.id, "mirror.failed", "checkpoint.home", "stage.home"),
            not_saved=unsaved[1] if unsaved is not None else None,
            lingering=[lease for lease in rented if self._lingers(c, lease)],
        )

    def _lingers(self, c: Connection, lease: Lease) -> bool:
        """Its first destroy was accepted long ago, and a listing since then has shown it."""
        if not lease.is_held:
            return False
        patience_ms = LINGERS * self.world.settings.timing.destroy_resend * 1000
        accepted = [op.resolved_at for op in operations.of_lease(c, lease.id) if _is_accepted_destroy(op)]
        return any(at is not None and (lease.last_seen or 0) - at > patience_ms for at in accepted)


def again_s(tries: int) -> float:
    """Seconds until a message is sent again that did not arrive, after so many tries before."""
    return min(AGAIN_S * 2.0 ** min(tries, 10), SELDOM_S)


def _of_lease(c: Connection, lease: Lease) -> Iterator[News]:
    """What stands behind it has no job that could say so itself."""
    if lease.job_id is None:
        yield of_orphan(lease)
    elif (job := jobs.get(c, lease.job_id)).state.is_terminal:
        yield of_returned(job, lease)


def _of_market(c: Connection, now: int) -> Iterator[News]:
    """Nothing else tells that it cannot be asked: what waits for its word is no failure, and no hold."""
    since = leader.get_meta(c, "unlisted_since")
    held = leases.held(c)
    asked = any(op.kind is not Kind.STAGE_START for op in operations.open_ones(c))
    waits = held or asked or any(job.hold_reason is None for job in jobs.unfinished(c))
    if since and waits:
        rate = sum(lease.rate for lease in held)
        yield from of_market(int(since), now, leader.get_meta(c, "last_probe_error") or "", rate)


def _is_accepted_destroy(op: Operation) -> bool:
    return op.kind is Kind.DESTROY and op.state is OpState.DONE


def _failed(c: Connection, job: str, kind: str, *instead: str) -> tuple[int, str] | None:
    """The newest event of that kind, by number and reason, unless one `instead` came after it."""
    newest = events.newest(c, job, (kind, *instead))
    return (newest.id, str(newest.body["why"])) if newest is not None and newest.kind == kind else None


def _mark(news: News) -> str:
    return f"told {news.key}"
