"""What the daemon costs while nothing happens: CPU share and memory, without a job and with one held job.

    .venv/bin/python tests/benchmarks/bench_idle.py [SECONDS]

Prints one JSON line. The held job has a rented machine, so listings and looks at the box go on.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))

from home import Home
from installed import build_wheel, install

SPEC = """\
version: 1
name: idle
model: {model}
sft: {{data: sft.jsonl}}
limits: {{price: 9/h}}
"""


def measured(process: psutil.Process, seconds: float) -> dict[str, Any]:
    before, began = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, passed = process.cpu_times(), time.monotonic() - began
    cpu = after.user + after.system - before.user - before.system
    return {"cpu_percent": round(100 * cpu / passed, 2), "rss_mb": round(process.memory_info().rss / 1e6)}


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bin_folder = install(build_wheel(folder / "wheel"), folder / "venv")
        home = Home(folder / "home", bin_folder, "homeport/idle", bin_folder / "python", time_scale=1.0)
        home.open_market()
        home.start()
        try:
            assert home.daemon is not None
            process = psutil.Process(home.daemon.pid)
            result = {"bench": "idle", "seconds": seconds, "no_job": measured(process, seconds)}
            spec = folder / "job.yaml"
            (folder / "sft.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
            nano = Path(__file__).parents[2] / "daemon/sandbox/models/nano"
            spec.write_text(SPEC.format(model=nano))
            job = home.submit(spec)
            home.jobctl("hold", job)
            result["one_held_job"] = measured(process, seconds)
            print(json.dumps(result))
        finally:
            home.close()


if __name__ == "__main__":
    main()
