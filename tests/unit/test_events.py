"""Replaying the event log yields what the row says."""

from __future__ import annotations

from pathlib import Path

from store import JOB, NOW, add_job, opened

from daemon.control.attempts import begin_again
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.store import events, jobs, stages


def test_replay_yields_state_hold_and_attempt(tmp_path: Path) -> None:
    """After moves, a hold, a release and a new attempt, held again: the log alone tells the same."""
    database = opened(tmp_path)
    with database.write() as c:
        add_job(c)
        jobs.move(c, jobs.get(c, JOB), JobState.PROVISIONED, NOW, 1)
        jobs.hold(c, jobs.get(c, JOB), HoldReason.BY_PERSON, "", NOW, 1)
        jobs.release(c, jobs.get(c, JOB), NOW, 1, by="person")
        job = jobs.get(c, JOB)
        changes = begin_again(c, job, stages.of_attempt(c, job), NOW, keep=(), fresh=True)
        jobs.move(c, job, JobState.QUEUED, NOW, 1, **changes)
        jobs.hold(c, jobs.get(c, JOB), HoldReason.DATA, "", NOW, 1)

        row, told = jobs.get(c, JOB), events.replay(c, JOB)

    database.close()
    assert told == {"state": row.state, "hold": row.hold_reason, "attempt": row.attempt}
    assert told == {"state": "QUEUED", "hold": "DATA", "attempt": 2}
