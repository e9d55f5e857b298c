"""A daemon without its inside: the real server on a real socket, over `Commands` that answer what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import Result

from daemon.api.server import Server
from daemon.domain.coverage import coverage
from daemon.settings import Settings
from daemon.store.views import coverage_view

Run = Callable[..., Result]
CANARY = "canary-5d1f0c"  # in every secret of the home

PLAN: dict[str, Any] = {
    "name": "support-bot",
    "model": "Qwen/Qwen3-4B-Instruct",
    "rows": {"SFT": 15300, "DPO": 2550},
    "steps": {"SFT": 330, "DPO": 80},
    "coverage": [
        coverage_view(stage)
        for stage in coverage({"sft": 15_300, "dpo": 2_550}, {"steps": {"SFT": 330, "DPO": 80}}, 32)
    ],
    "limits": {"cost": "$8.00", "time": "8h"},
    "hours": 1.5,
    "cost": "1.720000",
    "reserve": "0.150000",
    "download_bytes": 6_200_000_000,
    "deliver": [
        {"way": "download", "seconds": 1160.0, "cost": "5.15", "bytes": 6_200_000_000, "why": None},
        {"way": "rebuild", "seconds": 192.0, "cost": "0.84", "bytes": 0, "why": "the job file says so"},
    ],
    "disk_gb": 80,
    "currency": "USD",
    "offers": [
        {"offer": 11, "gpu": "RTX 4090", "price_per_hour": "0.41", "reliability": 0.996, "location": "SE", "reason": ""}
    ],
    "choices": [],
    "rejected": [
        {
            "offer": 12,
            "gpu": "RTX 3090",
            "price_per_hour": "0.21",
            "reliability": 0.91,
            "location": "US",
            "reason": "ends in 3 h",
        }
    ],
    "notes": [],
    "problems": [],
}


class Scripted:
    """Keeps every call; answers from `answers`, where an exception is raised instead."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {
            "submit": {"job": "k7f3qd", "name": "support-bot", "created": True, "plan": PLAN},
            "plan": PLAN,
            "offers": {"offers": PLAN["offers"], "rejected": PLAN["rejected"], "currency": "USD"},
            "abandon_terms": {
                "job": "k7f3qd",
                "name": "support-bot",
                "instance": 29481133,
                "lost": ["the final model (6.2 GB): it is on that machine only"],
            },
            "doctor": {"checks": [{"name": "market", "status": "PASS", "detail": "answers in 80 ms", "fix": ""}]},
        }

    def __getattr__(self, verb: str) -> Any:
        async def answer(*args: Any) -> Any:
            self.calls.append((verb, *args))
            found = self.answers.get(verb, {"job": "k7f3qd", "message": f"{verb} is done"})
            if isinstance(found, Exception):
                raise found
            return found

        return answer


@contextmanager
def running(settings: Settings, commands: Scripted) -> Iterator[Server]:
    """The server in a thread of its own, since jobctl blocks this one."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    server = Server(settings, commands, version="0.1.0")

    def live() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.start())
        ready.set()
        loop.run_forever()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def a_job_file(folder: Path) -> str:
    file = folder / "job.yaml"
    file.write_text("version: 1\nname: support-bot\n")
    return str(file)
