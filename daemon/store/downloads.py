"""The durable set of a download: the one place that says which chunks are on the platter."""

from __future__ import annotations

from sqlalchemy import Connection, delete, func, insert, select

from daemon.clock import Clock
from daemon.domain.lifecycle import JobState
from daemon.store import schema
from daemon.store.database import Database

_D = schema.downloads.c
MEASURABLE_BYTES = 20_000_000  # less is mostly round trips


class DurableChunks:
    """The download's memory for one job's current artifact set; each call is one committed transaction."""

    def __init__(self, database: Database, job: str, manifest_sha256: str, clock: Clock) -> None:
        self._database, self._job, self._manifest, self._clock = database, job, manifest_sha256, clock

    def load(self, path: str, sha256: str, size: int, chunk_size: int) -> bytes:
        """The bitmap of `path`, all zero when it is new or belongs to another artifact set."""
        empty = bytes((max(1, -(-size // chunk_size)) + 7) // 8)
        with self._database.read() as c:
            row = c.execute(select(schema.downloads).where(_D.job_id == self._job, _D.path == path)).one_or_none()
        if row is None or row.manifest_sha256 != self._manifest or row.size != size or row.chunk_size != chunk_size:
            with self._database.write() as c:
                c.execute(delete(schema.downloads).where(_D.job_id == self._job, _D.path == path))
                c.execute(
                    insert(schema.downloads).values(
                        job_id=self._job,
                        path=path,
                        manifest_sha256=self._manifest,
                        size=size,
                        chunk_size=chunk_size,
                        durable=empty,
                        updated_at=self._clock.wall_ms(),
                    )
                )
            return empty
        return bytes(row.durable)

    def record(self, path: str, bitmap: bytes, *, complete: bool, resent: int, bad: int) -> None:
        with self._database.write() as c:
            c.execute(
                schema.downloads.update()
                .where(_D.job_id == self._job, _D.path == path)
                .values(
                    durable=bitmap,
                    complete=int(complete),
                    resent_bytes=resent,
                    bad_chunks=bad,
                    updated_at=self._clock.wall_ms(),
                )
            )


def measured_line(c: Connection) -> float | None:
    """Mbit/s of the last run of a model's way home that tells; None before any.

    What fetched little tells of round trips, and what fetched less than was here of this disk, from which that is read
    back meanwhile; so does a model that was rebuilt here. Believed, it would price every other job beyond its limits.
    """
    began, over = schema.events.alias("began").c, schema.events.alias("over").c
    size = select(func.sum(_D.size)).where(_D.job_id == over.job_id, _D.complete == 1).scalar_subquery()
    rebuilt = select(schema.events.c.id).where(
        schema.events.c.kind == "rebuild.compared", schema.events.c.job_id == over.job_id
    )
    runs = c.execute(
        select(  # in SQLite the columns beside max() are of the row that has it
            size.label("size"),
            func.max(began.at).label("began"),
            over.at.label("over"),
            func.coalesce(func.json_extract(began.body, "$.here"), 0).label("here"),
        )
        .where(over.kind == "job.moved", func.json_extract(over.body, "$.to") == JobState.DOWNLOADED)
        .where(began.kind == "download.started", began.job_id == over.job_id, began.at < over.at)
        .where(~rebuilt.exists())
        .group_by(over.id)
        .order_by(over.id.desc())
    )
    fetched = ((run, (run.size or 0) - run.here) for run in runs)
    telling = ((run, size) for run, size in fetched if size >= max(MEASURABLE_BYTES, run.here))
    return next((float(size * 8 / 1e3 / (run.over - run.began)) for run, size in telling), None)


def bytes_here(c: Connection, job: str) -> int:
    """Of the job's files, as far as they are recorded; whole chunks."""
    rows = c.execute(select(_D.size, _D.chunk_size, _D.durable).where(_D.job_id == job))
    return sum(min(size, int.from_bytes(durable).bit_count() * chunk) for size, chunk, durable in rows)


def is_begun(c: Connection, job: str, manifest_sha256: str) -> bool:
    """Whether a download of this artifact set was begun."""
    rows = select(_D.path).where(_D.job_id == job, _D.manifest_sha256 == manifest_sha256).limit(1)
    return c.execute(rows).one_or_none() is not None


def forget(c: Connection, job: str) -> None:
    """The artifact set is void: nothing of it counts as here."""
    c.execute(delete(schema.downloads).where(_D.job_id == job))
