"""What 200 jobs in training cost one daemon: calls to the market, CPU of a reconcile pass, memory.

    .venv/bin/python tests/benchmarks/bench_many.py [JOBS] [SECONDS]

Prints one JSON line; exit 1 when a pass or the memory is over its goal. Market and machines are stand-ins (crowd.py),
reached by real HTTP and SSH; the daemon is the real one, with the intervals that it has on the paid market.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crowd
import psutil
from sqlalchemy import Connection

from daemon import platform
from daemon.app import open_store, take_leadership
from daemon.box.keys import own_key
from daemon.clock import SteadyClock, SystemClock
from daemon.control.operate import Operator
from daemon.control.reconcile import Reconciler
from daemon.domain.lifecycle import JobState
from daemon.domain.money import MICRO
from daemon.domain.records import Kind, LeaseState, OpState
from daemon.domain.spec import JobSpec
from daemon.market.vast import Vast
from daemon.settings import ApiKey, Settings, load
from daemon.store import jobs, leases, operations, stages
from daemon.store.database import Database

SPEC = JobSpec.model_validate({"version": 1, "name": "many", "model": "any/model", "sft": {"data": "sft.jsonl"}})
PASS_GOAL_S, MEMORY_GOAL_MB = 1.0, 250
PASSES = 5
UNLIMITED = 1_000.0  # time scale of the client in `passes`: what is measured is our work, not the pauses between calls
PATIENCE_S = 300.0


@contextmanager
def standing(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """The crowd's process, and what it said of itself."""
    command = [sys.executable, Path(__file__).with_name("crowd.py"), folder, str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(30)


def add_training(c: Connection, number: int, machines: Path, said: dict[str, Any], now: int) -> None:
    """A job in SFT on a machine that was proven and provisioned, as the daemon itself would have left it."""
    job, label = crowd.job_name(number), crowd.label(number)
    jobs.add(
        c, now, "person", id=job, name=job, request_id=job, spec_text="", spec_json=SPEC.canonical_json(),
        spec_sha256=SPEC.sha256, spec_dir=str(machines),
    )  # fmt: skip
    stages.begin_attempt(c, job, 1, SPEC.sha256, ["SFT", "GGUF"], now, keep=[], fresh=True)
    create = add_done(c, Kind.CREATE, now, job_id=job, label=label)
    lease = leases.add(
        c, operations.get(c, create), crowd.FIRST + number, label, LeaseState.LIVE, now, status="running",
        machine_id=number, price_per_hour=2 * MICRO, direct=f"127.0.0.1:{said['port']}", provisioned=1,
        host_key=said["host_key"], root=str(machines / job), python="python",
    )  # fmt: skip
    run = stages.of_attempt(c, jobs.get(c, job))[0]
    stages.mark_started(c, run, now)
    add_done(c, Kind.STAGE_START, now, job_id=job, lease_id=lease, nonce=run.nonce, stage=run.stage)
    for state in (JobState.PROVISIONED, JobState.SFT):
        jobs.move(c, jobs.get(c, job), state, now, None)


def add_done(c: Connection, kind: Kind, now: int, **values: Any) -> int:
    operation = operations.intend(c, kind, now, 1, {}, **values)
    for state in (OpState.SENT, OpState.DONE):
        operations.set_state(c, operation, state, now)
    return operation


async def passes(database: Database, url: str, settings: Settings, clock: SteadyClock) -> list[float]:
    """CPU seconds of whole reconcile passes, with nothing else going on in this process."""
    market = Vast(url, ApiKey("k"), clock, time_scale=UNLIMITED)
    operator = Operator(database, market, clock, settings)
    reconciler = Reconciler(database, operator, clock, settings.timing)
    taken = []
    for _ in range(PASSES):
        before = time.process_time()
        await reconciler.run_once()
        taken.append(time.process_time() - before)
    await market.aclose()
    return taken


def watched(database: Database, url: str, count: int, seconds: float, env: dict[str, str]) -> dict[str, Any]:
    """The daemon for `seconds`, from the moment that it has looked at every machine."""
    log = Path(env["HOMEPORT_HOME"]) / "jobd.out"
    with open(log, "ab") as out:
        daemon = subprocess.Popen([sys.executable, "-m", "daemon.app"], stdout=out, stderr=out, env=env)
    try:
        began = time.monotonic()
        while counted(database, "box_reports") < count:
            if daemon.poll() is not None or time.monotonic() - began > PATIENCE_S:
                raise SystemExit(log.read_text())
            time.sleep(0.5)
        ready = time.monotonic()
        process = psutil.Process(daemon.pid)
        cpu, calls, steps = process.cpu_times(), asked(url), counted(database, "metrics")
        time.sleep(seconds)
        passed, used, now = time.monotonic() - ready, process.cpu_times(), asked(url)
        return {
            "all_seen_after_s": round(ready - began, 1),
            "cpu_percent": round(100 * (used.user + used.system - cpu.user - cpu.system) / passed, 1),
            "rss_mb": round(process.memory_info().rss / 1e6),
            "steps_stored": counted(database, "metrics") - steps,
            "calls": {path: now[path] - calls.get(path, 0) for path in now},
        }
    finally:
        daemon.terminate()
        daemon.wait(60)


def counted(database: Database, table: str) -> int:
    with database.read() as c:
        return int(c.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def asked(url: str) -> dict[str, int]:
    """How often each path of the market was asked for so far."""
    with urllib.request.urlopen(url + crowd.ASKED) as reply:
        return dict(json.load(reply))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    with tempfile.TemporaryDirectory() as scratch, standing(Path(scratch) / "machines", count) as said:
        home = Path(scratch) / "home"
        (home / "config").mkdir(parents=True)
        (home / "config" / "config.toml").write_text(f'market_url = "{said["url"]}"\n')
        key = home / "config" / "vast_api_key"
        key.touch(mode=0o600)
        key.write_text("k")
        env = {**os.environ, "HOMEPORT_HOME": str(home)}
        settings, clock = load(env), SteadyClock(SystemClock())
        now = clock.wall_ms()
        own_key(settings.paths.ssh_key)
        database = open_store(settings.paths, now)
        take_leadership(database, platform.machine_id(), clock)
        with database.write() as c:
            for number in range(count):
                add_training(c, number, Path(scratch) / "machines", said, now)
        taken = asyncio.run(passes(database, said["url"], settings, clock))
        daemon = watched(database, said["url"], count, seconds, env)
        database.close()
        result = {"bench": "many", "jobs": count, "seconds": seconds, "pass_cpu_s": round(statistics.median(taken), 3)}
        print(json.dumps(result | daemon))
        if result["pass_cpu_s"] >= PASS_GOAL_S or daemon["rss_mb"] >= MEMORY_GOAL_MB:
            sys.exit(f"the goals are under {PASS_GOAL_S} s a pass and under {MEMORY_GOAL_MB} MB")


if __name__ == "__main__":
    main()
