"""A real database of the daemon, filled row by row, for whatever reads it."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from daemon.store import schema

NOW = time.time_ns() // 1_000_000
HOUR = 3_600_000
SPEC = {
    "model": "Qwen/Qwen3-4B-Instruct",
    "sft": {"data": "sft.jsonl"},
    "dpo": {"data": "dpo.jsonl"},
    "limits": {"cost": 8_000_000},
    "verify": {"level": "full"},
}


class Stored:
    """`path` holds every table; each method inserts one row and fills in what a test does not care about."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(f"sqlite:///{path}")
        schema.metadata.create_all(engine)
        engine.dispose()
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA journal_mode = WAL")

    def insert(self, table: str, **values: Any) -> None:
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", list(values.values()))

    def job(self, id: str, **given: Any) -> None:
        row = {
            "id": id,
            "name": f"name-{id}",
            "request_id": id,
            "state": "QUEUED",
            "spec_text": "",
            "spec_json": json.dumps(SPEC),
            "spec_sha256": "0" * 64,
            "spec_dir": "/",
            "created_at": NOW - HOUR,
            "updated_at": NOW,
            "state_since": NOW - HOUR,
        }
        self.insert("jobs", **row | given)

    def lease(self, job: str | None, **given: Any) -> None:
        row = {
            "job_id": job,
            "instance_id": 29481133,
            "label": f"hp-test-{job}-x",
            "state": "LIVE",
            "gpu_name": "RTX 4090",
            "num_gpus": 1,
            "price_per_hour": 400_000,
            "storage_per_hour": 10_000,
            "status": "running",
            "created_at": NOW - HOUR,
            "observed_ms": NOW,
            "last_seen": NOW,
            "cost": 400_000,
        }
        self.insert("leases", **row | given)

    def operation(self, kind: str, state: str, **given: Any) -> None:
        self.insert(
            "operations", **{"kind": kind, "state": state, "epoch": 1, "request": "{}", "created_at": NOW} | given
        )

    def steps(self, job: str, stage: str, first: int, last: int, total: int, **given: Any) -> None:
        for step in range(first, last + 1):
            row = {
                "job_id": job,
                "attempt": 1,
                "stage": stage,
                "step": step,
                "at": NOW - (last - step) * 10_000,
                "total": total,
                "loss": 2.0 - step / total,
                "lr": 1e-4,
                "tokens": step * 1000,
                "tok_s": 800.0,
            }
            row |= given
            self.insert("metrics", **row, body=json.dumps({"loss": row["loss"], "lr": row["lr"]}))

    def manifest(self, job: str, files: dict[str, int]) -> None:
        text = json.dumps({"files": [{"path": f"run/out/{name}", "size": size} for name, size in files.items()]})
        with closing(sqlite3.connect(self.path)) as db, db:
            db.execute("UPDATE jobs SET manifest_sha256 = 'm', manifest_json = ? WHERE id = ?", (text, job))

    def download(self, job: str, path: str, size: int, chunks: int, **given: Any) -> None:
        durable = ((1 << chunks) - 1).to_bytes(8, "little")
        row = {"job_id": job, "path": path, "manifest_sha256": "m", "size": size, "chunk_size": 8 << 20}
        self.insert("downloads", **row | {"durable": durable, "updated_at": NOW} | given)

    def receipt(self, job: str, folder: Path, files: dict[str, bytes], **given: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        listed = json.dumps([{"path": name, "size": len(content)} for name, content in files.items()])
        row = {"job_id": job, "attempt": 1, "manifest_sha256": "m", "folder": str(folder), "files": listed}
        self.insert("receipts", **row | {"levels": "[]", "level": "full", "created_at": NOW} | given)

    def listing(self, credit: int = 31_400_000, at: int = NOW, error: str = "") -> None:
        """The last trusted listing of the market."""
        for key, value in (("credit", credit), ("last_listing", at), ("last_probe_error", error)):
            self.insert("meta", key=key, value=str(value))
