"""The durable set of a download: the one place that says which chunks are on the platter."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from daemon.clock import Clock
from daemon.store import schema
from daemon.store.database import Database

_D = schema.downloads.c


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


def forget(c: Connection, job: str) -> None:
    """The artifact set is void: nothing of it counts as here."""
    c.execute(delete(schema.downloads).where(_D.job_id == job))
