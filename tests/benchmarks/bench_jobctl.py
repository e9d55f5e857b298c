"""CPU seconds of `jobctl --help` (goal 0.10) and `jobctl status` with 20 jobs (goal 0.20), with the daemon and without.

    python tests/benchmarks/bench_jobctl.py

The least of ten runs each, children only, byte code present. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

from scripted import Scripted, running  # noqa: E402 - after the path is set
from stored import Stored  # noqa: E402

from daemon import settings  # noqa: E402

JOBS = 20
RUNS = 10


def cpu_s(*args: str) -> float:
    """The least CPU seconds of jobctl with `args`."""
    command = [sys.executable, "-c", "from daemon.cli import main; main()", *args]
    spent = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(min(spent), 3)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOMEPORT_HOME"] = home
        loaded = settings.load()
        stored = Stored(loaded.paths.database)
        for n in range(JOBS):
            job = f"k7f3{n:02}"
            stored.job(job, state="SFT")
            stored.lease(job, instance_id=n)
            stored.steps(job, "SFT", 1, 20, 520)
        found = {"help_s": cpu_s("--help"), "status_without_daemon_s": cpu_s("status")}
        with running(loaded, Scripted()):
            found["status_s"] = cpu_s("status")
        print(json.dumps(found | {"jobs": JOBS}))


if __name__ == "__main__":
    main()
