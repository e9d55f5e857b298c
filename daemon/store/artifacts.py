"""Receipts and what voids them, and the abandon tokens: two of the three facts that permit a destroy."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from daemon.domain.records import Job, ReceiptRow, Token
from daemon.store import events, schema
from daemon.store.rows import record

_R, _S, _T, _E = schema.receipts.c, schema.supersessions.c, schema.tokens.c, schema.events.c
ACCEPTED = "verify.accepted"  # the event that a person's acceptance is

# Built once: building a statement takes several times as long as running it.
_CURRENT_RECEIPT = (
    select(schema.receipts)
    .where(
        _R.job_id == bindparam("job"),
        _R.attempt == bindparam("attempt"),
        _R.manifest_sha256 == bindparam("manifest"),
        _R.id.not_in(select(_S.receipt_id)),
    )
    .order_by(_R.id.desc())
)
_USABLE_TOKEN = (
    select(schema.tokens)
    .where(
        _T.job_id == bindparam("job"),
        _T.instance_id == bindparam("instance"),
        _T.attempt == bindparam("attempt"),
        _T.void_at.is_(None),
        _T.used_by.is_(None),
        _T.created_at <= bindparam("now"),  # typed in what is the future now: before the clock was set back
        _T.expires_at >= bindparam("now"),
    )
    .order_by(_T.id.desc())
)


def add_receipt(c: Connection, job: Job, now_ms: int, *, folder: str, files: str, levels: str, level: str) -> int:
    result = c.execute(
        insert(schema.receipts).values(
            job_id=job.id,
            attempt=job.attempt,
            manifest_sha256=job.manifest_sha256,
            folder=folder,
            files=files,
            levels=levels,
            level=level,
            created_at=now_ms,
        )
    )
    receipt = int(result.inserted_primary_key[0])  # type: ignore[index]
    events.add(c, "receipt.stored", now_ms, job=job.id, receipt=receipt, folder=folder, level=level)
    return receipt


def current_receipt(c: Connection, job: Job) -> ReceiptRow | None:
    """The receipt of the job's current artifact set, if it stands."""
    current = {"job": job.id, "attempt": job.attempt, "manifest": job.manifest_sha256}
    row = c.execute(_CURRENT_RECEIPT, current).first()
    return record(ReceiptRow, row) if row else None


def receipt_folders(c: Connection, job: str) -> set[str]:
    """Where models of the job were verified, as far as this database knows."""
    return set(c.execute(select(schema.receipts.c.folder).where(schema.receipts.c.job_id == job)).scalars())


def supersede(c: Connection, job: Job, reason: str, now_ms: int) -> None:
    """No receipt of `job` permits anything any more."""
    standing = c.execute(select(_R.id).where(_R.job_id == job.id, _R.id.not_in(select(_S.receipt_id)))).scalars().all()
    for receipt in standing:
        c.execute(insert(schema.supersessions).values(receipt_id=receipt, at=now_ms, reason=reason))
        events.add(c, "receipt.superseded", now_ms, job=job.id, receipt=receipt, reason=reason)


def accept_level(c: Connection, job: Job, level: str, by: str, now_ms: int) -> None:
    """`by` accepts that of the job's current artifact set nothing above `level` can be verified here."""
    of, attempt = job.manifest_sha256, job.attempt
    events.add(c, ACCEPTED, now_ms, job=job.id, by=by, level=level, manifest_sha256=of, attempt=attempt)


def accepted_level(c: Connection, job: Job) -> dict[str, Any] | None:
    """The newest acceptance that stands for the job's current artifact set: {level, by, at}."""
    rows = c.execute(
        select(_E.at, _E.by, _E.body).where(_E.job_id == job.id, _E.kind == ACCEPTED).order_by(_E.id.desc())
    )
    for at, by, text in rows:
        body = json.loads(text)
        if (body["manifest_sha256"], body["attempt"]) == (job.manifest_sha256, job.attempt):
            return {"level": body["level"], "by": by, "at": at}
    return None


def add_token(c: Connection, job: Job, instance_id: int, by: str, now_ms: int, expires_at: int) -> int:
    result = c.execute(
        insert(schema.tokens).values(
            job_id=job.id, instance_id=instance_id, attempt=job.attempt, by=by, created_at=now_ms, expires_at=expires_at
        )
    )
    token = int(result.inserted_primary_key[0])  # type: ignore[index]
    events.add(c, "token.typed", now_ms, job=job.id, by=by, token=token, instance=instance_id)
    return token


def usable_token(c: Connection, job: Job, instance_id: int, now_ms: int) -> Token | None:
    now = {"job": job.id, "instance": instance_id, "attempt": job.attempt, "now": now_ms}
    row = c.execute(_USABLE_TOKEN, now).first()
    return record(Token, row) if row else None


def use_token(c: Connection, token: int, operation: int) -> None:
    c.execute(update(schema.tokens).where(_T.id == token).values(used_by=operation))


def void_tokens(c: Connection, job: str, now_ms: int) -> None:
    c.execute(update(schema.tokens).where(_T.job_id == job, _T.void_at.is_(None)).values(void_at=now_ms))
