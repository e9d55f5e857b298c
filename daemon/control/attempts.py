"""A new attempt of a job: new nonces, the old artifact set void."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from daemon.domain.records import Job, StageRun
from daemon.store import artifacts, downloads, stages


def begin_again(
    c: Connection,
    job: Job,
    runs: Sequence[StageRun],
    now_ms: int,
    *,
    keep: Sequence[StageRun],
    fresh: bool,
    redo: str | None = None,
) -> dict[str, Any]:
    """Receipts superseded, tokens void, downloads forgotten, attempt n+1 begun, all in the caller's transaction.

    `keep` are the finished stages whose outputs still lie on the same box; `fresh` and `redo` as in begin_attempt.
    Returns the columns that the caller swaps into the jobs row with its own compare-and-swap.
    """
    artifacts.supersede(c, job, f"attempt {job.attempt + 1}", now_ms)
    artifacts.void_tokens(c, job.id, now_ms)
    downloads.forget(c, job.id)
    names, n = [run.stage for run in runs], job.attempt + 1
    stages.begin_attempt(c, job.id, n, job.spec_sha256, names, now_ms, keep=list(keep), fresh=fresh, redo=redo)
    return {"attempt": job.attempt + 1, "manifest_sha256": None, "manifest_json": None, "prepared_json": None}
