"""Seconds per stage of the last demo, and what its verification cost per GB, read from the demo's own event log.

    jobctl demo [--quick]; .venv/bin/python tests/benchmarks/bench_demo.py

Prints one JSON line.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import sys

from daemon.cli.demo import demo_home


def main() -> None:
    database = demo_home() / "state" / "homeport.db"
    if not database.exists():
        sys.exit(f"{database} is missing: run jobctl demo first")
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    rows = db.execute("SELECT at, kind, body FROM events WHERE job_id IS NOT NULL ORDER BY id").fetchall()
    manifest = json.loads(db.execute("SELECT manifest_json FROM jobs").fetchone()[0])
    db.close()
    began = {"QUEUED": next(at for at, kind, _ in rows if kind == "job.submitted")}
    began |= {json.loads(body)["to"]: at for at, kind, body in rows if kind == "job.moved"}
    states = list(began)
    stages = {a: round((began[b] - began[a]) / 1000, 1) for a, b in itertools.pairwise(states)}
    verified = next(at for at, kind, _ in rows if kind == "verify.report")
    gigabytes = sum(file["size"] for file in manifest["files"] if file["role"] == "gguf") / 1e9
    verify_s = (verified - began["DOWNLOADED"]) / 1000
    print(
        json.dumps(
            {
                "bench": "demo",
                "seconds_in": stages,
                "total_s": round((began["DESTROYED"] - began["QUEUED"]) / 1000, 1),
                "verify_s_per_gb": round(verify_s / gigabytes, 1),
                "gguf_gb": round(gigabytes, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
