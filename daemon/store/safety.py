"""Is my model safe here? The question every screen answers, and only ever by what was stored and what lies on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daemon.domain.lifecycle import TERMINAL, JobState
from daemon.store.job_rows import JobRows, Row, box_status, bytes_here, current_lease, is_billing
from daemon.store.shapes import Safety, Whereabouts, iso


def model_safety(rows: JobRows) -> Safety:
    """Is the model safe here? Yes only by a receipt of the current artifact set whose files are still there."""
    job, receipt = rows.job, rows.receipt
    if receipt is not None:
        return _by_receipt(receipt)
    lease = current_lease(rows.leases)
    instance = lease["instance_id"] if lease is not None and is_billing(lease) else None
    if job["manifest_sha256"] is None:
        return _before_the_model(rows, instance)
    done, total = bytes_here(rows)
    here = "every file is here and hashes right, but is not verified yet"
    if job["state"] not in ("DOWNLOADED", "VERIFIED"):
        here = f"{_gigabytes(done)} of {_gigabytes(total)} is here"
    if instance is None:
        return Safety(where=Whereabouts.NOWHERE, safe=False, text=f"no. {here}; no machine holds the rest", path=None)
    text = f"no. {here}; the whole model is on instance {instance} only, which is kept"
    return Safety(where=Whereabouts.BOX, safe=False, text=text, path=None)


def _by_receipt(receipt: Row) -> Safety:
    folder = Path(receipt["folder"])
    for file in json.loads(receipt["files"]):
        path = folder / file["path"]
        if not path.is_file() or path.stat().st_size != file["size"]:
            text = f"NO LONGER. It was verified, but {path} is missing or was changed since"
            return Safety(where=Whereabouts.NOWHERE, safe=False, text=text, path=str(folder))
    how = "levels L0-L5 passed" if receipt["level"] == "full" else "bytes only: its behaviour was not checked"
    text = f"yes. Verified {iso(receipt['created_at'])} ({how}): {folder}"
    return Safety(where=Whereabouts.HERE, safe=True, text=text, path=str(folder))


def _before_the_model(rows: JobRows, instance: int | None) -> Safety:
    report, lease = rows.report, current_lease(rows.leases)
    # Not of a machine before it.
    is_its = report is not None and (lease is None or (report["seen_at"] or 0) >= lease["created_at"])
    step = (box_status(report).get("checkpoint_step") or 0) if is_its else 0
    if JobState(rows.job["state"]) in TERMINAL:
        return Safety(where=Whereabouts.NOWHERE, safe=False, text="no. The job ended without a model", path=None)
    parts = [f"checkpoint {step} is on instance {instance}"] if step and instance is not None else []
    if rows.mirrored is not None:
        parts.append(f"{_mirrored(json.loads(rows.mirrored['body']))} is here")
    if not parts:
        return Safety(where=Whereabouts.NOWHERE, safe=False, text="no. The model exists nowhere yet", path=None)
    text = f"no. The final model exists nowhere yet; {', '.join(parts)}"
    where = Whereabouts.BOX if instance is not None else Whereabouts.NOWHERE  # HERE would mean: verified
    return Safety(where=where, safe=False, text=text, path=None)


def _mirrored(home: dict[str, Any]) -> str:
    return f"{home['stage']} to step {home['step']}" if "step" in home else f"{home['stage']}, finished,"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
