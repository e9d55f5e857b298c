"""When the wall clock was set back: what was stored in its future comes back by as much.

What a machine costs, how long a hold lasts and every patience are reckoned from a stored time to now. Without this, an
hour set back would cost nothing, and a hold that began before it would last an hour longer. The daemon's clock does not
fall below what was lived through (daemon/clock.py); this is for a step ahead that is taken back. By how much is told by
the newest time stored: the leader's row is renewed in every pass.
"""

from __future__ import annotations

import structlog
from sqlalchemy import Connection, bindparam, func, select, update

from daemon.store import schema

log = structlog.get_logger()

# Times of what has happened, by our clock. Not here: what lies ahead on purpose, what the market said, and a typed
# token, which is worth nothing while it lies in the future.
TIMES = (
    schema.leader.c.renewed,
    schema.jobs.c.state_since,
    schema.jobs.c.hold_since,
    schema.jobs.c.spoken_at,
    schema.leases.c.created_at,
    schema.leases.c.observed_ms,
    schema.leases.c.last_seen,
    schema.leases.c.status_since,
    schema.leases.c.absent_first,
    schema.leases.c.gone_at,
    schema.operations.c.created_at,
    schema.operations.c.sent_at,
    schema.operations.c.resolved_at,
    schema.stages.c.started_at,
    schema.box_reports.c.seen_at,
    schema.box_reports.c.lost_since,
    schema.bad_machines.c.at,
)

LEAST_MS = 1_000  # less is the time between taking a time and storing it, by two writers at once

# Built once: building a statement takes several times as long as running it.
_NEWEST = select(*(select(func.max(time)).scalar_subquery() for time in TIMES))
_BACK = [update(time.table).where(time > bindparam("now")).values({time: time - bindparam("step")}) for time in TIMES]


def newest(c: Connection) -> int:
    """The newest time stored, UTC milliseconds: what was lived through. 0: none is."""
    return max((time for time in c.execute(_NEWEST).one() if time is not None), default=0)


def undo(c: Connection, now_ms: int) -> int:
    """Bring back what lies after `now_ms`, by the milliseconds returned: the newest is now then. 0: nothing does."""
    step = newest(c) - now_ms
    if step < LEAST_MS:
        return 0
    for statement in _BACK:
        c.execute(statement, {"now": now_ms, "step": step})
    log.warning("clock.set_back", by_s=round(step / 1000))
    return step
