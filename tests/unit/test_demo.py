"""How a demo ends that does not end by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import demo
from daemon.cli.chaos import TRIALS, Chaos

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def hung_up() -> Iterator[list[int]]:
    """Instead of what ends this process: the signals that came before the demo took them over."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda n, _: came.append(n)) for each in (signal.SIGHUP, signal.SIGTERM)}
    yield came
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A demo that waits for its end, and then cleans up, during which a second signal comes."""
    told: list[str] = []

    def work(*_: object, **__: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            told.append("went on")
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            told.append("cleaned up")
        return 0

    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "_run", work)
    return told


def test_a_terminal_that_is_closed(hung_up: list[int], at_work: list[str]) -> None:
    """Its market and its daemon are in groups of their own and would run on: it ends them in order, once."""
    with pytest.raises(SystemExit) as ended:
        demo.run(quick=True)

    assert ended.value.code == 128 + signal.SIGHUP
    assert at_work == ["cleaned up"] and hung_up == []


def test_nohup(hung_up: list[int], at_work: list[str]) -> None:
    """Who told it to outlive the terminal is obeyed."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    assert demo.run(quick=True) == 0
    assert at_work == ["went on", "cleaned up"]


def test_what_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A market or a daemon that hangs is not left running, and is no error of ours."""
    monkeypatch.setattr(demo, "START_S", 0.2)
    child: subprocess.Popen[Any] = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline()
        demo._stop(child)

        assert child.returncode == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_nothing_is_survived_before_it_struck(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened of itself before the fault is no proof that the fault was survived."""
    hits = dict.fromkeys(range(1, len(TRIALS) + 1), 0)
    ids = iter(hits)

    def ask(self: Chaos, method: str, path: str, body: Any = None) -> Any:
        return {"id": next(ids)} if method == "POST" else {"faults": [{"id": i, "hits": n} for i, n in hits.items()]}

    monkeypatch.setattr(Chaos, "_ask", ask)
    with closing(Chaos({"url": "http://127.0.0.1:1", "api_key": "none"})) as chaos:
        training: Any = {"kind": "job.moved", "body": {"to": "SFT"}}
        again: Any = {"kind": "box.reconnected", "body": {}}
        assert list(chaos.look([training, again])) == []
        hits[3] = 1  # the connections are cut
        assert [line.split()[0] for line in chaos.look([])] == ["FAULT"]
        assert [line.split()[0] for line in chaos.look([again])] == ["SURVIVED"]
