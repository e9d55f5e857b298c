"""The committed record of what was run: one line for each batch of runs, so that a soak goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.acceptance.installed import ROOT

LEDGER = Path(__file__).with_name("ledger.jsonl")
KILLS = ("kill", "end", "sleep")


def entry(runs: range, reports: Sequence[dict[str, Any]], without: Sequence[int], name: str) -> dict[str, Any]:
    """The line of one batch of the commit `name`, `without` those that train for real where that was not possible."""
    faults = Counter(stroke["deed"] for report in reports for stroke in report["dealt"])
    return {
        "commit": name,
        "runs": f"{runs.start}:{runs.stop}",
        **({"without": list(without)} if without else {}),
        "kills": sum(faults[kill] for kill in KILLS),
        "faults": dict(sorted(faults.items())),
        "violations": sum(bool(report["broken"]) for report in reports),
        "seconds": round(sum(report["seconds"] for report in reports)),
        "date": datetime.now(UTC).date().isoformat(),
    }


def add(line: dict[str, Any]) -> None:
    with open(LEDGER, "a", encoding="utf-8") as f:
        f.write(json.dumps(line) + "\n")


def next_run() -> int:
    """The first run that no line covers."""
    lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
    return max((int(json.loads(line)["runs"].split(":")[1]) for line in lines), default=0)


def commit(*tests: str) -> str:
    """What is run; `+`: the code, or one of these folders of tests, differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "daemon", "remote_payload", "migrations", *tests)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
