"""Attempts and the nonces of their stages."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, insert, select, update

from daemon.domain import ids
from daemon.domain.records import Job, StageRun
from daemon.store import events, schema
from daemon.store.rows import record

_S = schema.stages.c
_OF_ATTEMPT = select(schema.stages).where(_S.job_id == bindparam("job"), _S.attempt == bindparam("attempt"))


def begin_attempt(
    c: Connection,
    job: str,
    n: int,
    spec_sha256: str,
    stages: list[str],
    now_ms: int,
    *,
    keep: list[StageRun],
    fresh: bool,
    redo: str | None = None,
) -> None:
    """Attempt `n`: stages in `keep` carry their nonce and done.json over, the others get a new nonce.

    `fresh` are those from `redo` on, by default all; one before it goes on from its newest checkpoint.
    """
    first = stages.index(redo) if redo is not None else 0
    c.execute(insert(schema.attempts).values(job_id=job, n=n, spec_sha256=spec_sha256, created_at=now_ms))
    kept = {run.stage: run for run in keep}
    for place, stage in enumerate(stages):
        run = kept.get(stage)
        c.execute(
            insert(schema.stages).values(
                job_id=job,
                attempt=n,
                stage=stage,
                nonce=run.nonce if run else ids.nonce(),
                fresh=0 if run else int(fresh and place >= first),
                started_at=run.started_at if run else None,
                done_at=run.done_at if run else None,
                done_json=run.done_json if run else None,
            )
        )
    events.add(c, "job.attempt", now_ms, job=job, n=n, kept=sorted(kept))


def of_attempt(c: Connection, job: Job) -> list[StageRun]:
    """In the order in which they run."""
    order = {"SFT": 0, "DPO": 1, "GGUF": 2}
    rows = c.execute(_OF_ATTEMPT, {"job": job.id, "attempt": job.attempt})
    return sorted((record(StageRun, row) for row in rows), key=lambda run: order[run.stage])


def lineage(c: Connection, job: str, stage: str) -> list[str]:
    """The nonces under which the stage ran, newest first, back to where it was last begun afresh."""
    rows = c.execute(
        select(_S.nonce, _S.fresh).where(_S.job_id == job, _S.stage == stage).order_by(_S.attempt.desc())
    ).all()
    nonces: list[str] = []
    for nonce, fresh in rows:
        nonces.append(nonce)
        if fresh:
            break
    return nonces


def mark_started(c: Connection, run: StageRun, now_ms: int) -> None:
    c.execute(_where(run).values(started_at=run.started_at or now_ms))


def mark_done(c: Connection, run: StageRun, done_json: str, now_ms: int) -> None:
    c.execute(_where(run).values(done_at=now_ms, done_json=done_json))
    events.add(c, "stage.done", now_ms, job=run.job_id, stage=run.stage, nonce=run.nonce)


def _where(run: StageRun):  # type: ignore[no-untyped-def]
    return update(schema.stages).where(_S.job_id == run.job_id, _S.attempt == run.attempt, _S.stage == run.stage)
