"""Receipts and what voids them, and the abandon tokens: two of the three facts that permit a destroy."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from daemon.domain.records import Job, ReceiptRow, Token
from daemon.store import events, schema
from daemon.store.rows import record

_R, _S, _T = schema.receipts.c, schema.supersessions.c, schema.tokens.c


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
    row = c.execute(
        select(schema.receipts)
        .where(
            _R.job_id == job.id,
            _R.attempt == job.attempt,
            _R.manifest_sha256 == job.manifest_sha256,
            _R.id.not_in(select(_S.receipt_id)),
        )
        .order_by(_R.id.desc())
    ).first()
    return record(ReceiptRow, row) if row else None


def supersede(c: Connection, job: Job, reason: str, now_ms: int) -> None:
    """No receipt of `job` permits anything any more."""
    standing = c.execute(select(_R.id).where(_R.job_id == job.id, _R.id.not_in(select(_S.receipt_id)))).scalars().all()
    for receipt in standing:
        c.execute(insert(schema.supersessions).values(receipt_id=receipt, at=now_ms, reason=reason))
        events.add(c, "receipt.superseded", now_ms, job=job.id, receipt=receipt, reason=reason)


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
    row = c.execute(
        select(schema.tokens)
        .where(
            _T.job_id == job.id,
            _T.instance_id == instance_id,
            _T.attempt == job.attempt,
            _T.void_at.is_(None),
            _T.used_by.is_(None),
            _T.created_at <= now_ms,  # typed in what is the future now: before the clock was set back
            _T.expires_at >= now_ms,
        )
        .order_by(_T.id.desc())
    ).first()
    return record(Token, row) if row else None


def use_token(c: Connection, token: int, operation: int) -> None:
    c.execute(update(schema.tokens).where(_T.id == token).values(used_by=operation))


def void_tokens(c: Connection, job: str, now_ms: int) -> None:
    c.execute(update(schema.tokens).where(_T.job_id == job, _T.void_at.is_(None)).values(void_at=now_ms))
