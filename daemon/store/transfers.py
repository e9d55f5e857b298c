"""What moves between a job's box and this disk at this moment, beside its download. One row in `meta` a job.

Written once a second while it moves, and deleted at its end. A row of another epoch was left by a process that died.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, delete

from daemon.store import schema
from daemon.store.leader import put_meta

PREFIX = "moving."


def put(c: Connection, job: str, epoch: int | None, now_ms: int, **values: Any) -> None:
    """`values`: what (UPLOAD, MIRROR), done, total, resent (bytes), per_s (bytes, None before it is known)."""
    put_meta(c, PREFIX + job, json.dumps({**values, "epoch": epoch, "at": now_ms}))


def forget(c: Connection, job: str) -> None:
    c.execute(delete(schema.meta).where(schema.meta.c.key == PREFIX + job))
