"""jobctl as a process: on a terminal of its own, in a pipe, interrupted."""

from __future__ import annotations

import errno
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, a_job_file
from stored import Stored

from daemon.settings import Settings


def process(config: Settings, *args: str, **options: Any) -> subprocess.Popen[str]:
    """jobctl in a process of its own."""
    command = [sys.executable, "-c", "from daemon.cli import main; main()", *args]
    env = os.environ | {"HOMEPORT_HOME": str(config.paths.state.parent)}
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **options
    )


def test_a_broken_pipe_leaves_no_trace(config: Settings, commands: Scripted, stored: Stored) -> None:
    """`jobctl metrics | head -1` ends without a traceback."""
    stored.job("k7f3qd", state="SFT")
    stored.steps("k7f3qd", "SFT", 1, 300, 300)
    jobctl_process = process(config, "metrics", "k7f", "--json")
    assert jobctl_process.stdout is not None and jobctl_process.stderr is not None

    jobctl_process.stdout.readline()
    jobctl_process.stdout.close()

    assert jobctl_process.stderr.read() == ""
    jobctl_process.wait(120)
    jobctl_process.stderr.close()


def test_ctrl_c_detaches_and_says_how_to_come_back(config: Settings, commands: Scripted, stored: Stored) -> None:
    """Interrupting a wait ends the waiting, not the job: exit 130 and the command that goes on."""
    stored.job("k7f3qd", state="SFT")
    waiting = process(config, "wait", "k7f")
    assert waiting.stderr is not None and waiting.stdout is not None
    assert "k7f3qd  SFT" in waiting.stderr.readline()

    waiting.send_signal(signal.SIGINT)

    assert "Come back with: jobctl wait k7f --for DESTROYED" in waiting.stderr.read()
    assert waiting.wait(20) == 130
    waiting.stderr.close()
    waiting.stdout.close()


class Terminal:
    """jobctl on a terminal of its own: what it writes to the screen, and keys to type."""

    def __init__(self, config: Settings, *args: str) -> None:
        command = [sys.executable, "-c", "from daemon.cli import main; main()", *args]
        env = os.environ | {"HOMEPORT_HOME": str(config.paths.state.parent), "TERM": "xterm"}
        self.screen = ""
        self._fd, child = pty.openpty()
        self.process = subprocess.Popen(command, env=env, stdin=child, stdout=child, stderr=child, close_fds=True)
        os.close(child)

    def wait_for(self, text: str) -> None:
        while text not in self.screen:
            assert self._read(), f"ended before {text!r}: {self.screen}"

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._fd)
        return self.process.wait(120)

    def _read(self) -> bool:
        """Wait for more on the screen; False when jobctl has closed it."""
        if not select.select([self._fd], [], [], 120)[0]:
            self.process.kill()
            pytest.fail(f"nothing for two minutes after: {self.screen}")
        try:
            self.screen += os.read(self._fd, 65536).decode()
        except OSError as error:
            if error.errno != errno.EIO:  # what Linux says when the other end of a terminal is closed
                raise
            return False
        return True


@pytest.mark.parametrize(("typed", "code"), [("29481133\n", 0), ("yes\n", 1), ("\n29481134\n", 1), ("\x04", 130)])
def test_abandon_on_a_terminal_has_the_id_typed(
    config: Settings, commands: Scripted, stored: Stored, typed: str, code: int
) -> None:
    """Neither yes nor Enter nor a near miss gives a model up: only the instance id does."""
    stored.job("k7f3qd")
    terminal = Terminal(config, "abandon", "k7f")

    terminal.wait_for("Type the instance id")
    terminal.type(typed)

    assert terminal.end() == code
    assert [call[0] for call in commands.calls if call[0] == "abandon"] == ["abandon"] * (code == 0)


@pytest.mark.parametrize(("typed", "submitted"), [("y\n", True), ("\n", False), ("n\n", False)])
def test_submit_on_a_terminal_shows_the_plan_and_asks_once(
    config: Settings, commands: Scripted, tmp_path: Path, typed: str, submitted: bool
) -> None:
    """A person sees what it will cost before anything is rented; Enter alone rents nothing."""
    terminal = Terminal(config, "submit", a_job_file(tmp_path))

    terminal.wait_for("Rent and train?")
    assert "about $1.72" in terminal.screen
    terminal.type(typed)
    terminal.end()

    assert ("submit" in [call[0] for call in commands.calls]) is submitted


def test_watching_draws_over_itself_and_ends_politely(config: Settings, commands: Scripted, stored: Stored) -> None:
    """status -w on a terminal redraws in place and in colour; Ctrl-C ends the looking with 130."""
    stored.job("k7f3qd", state="SFT")
    terminal = Terminal(config, "status", "-w")

    terminal.wait_for("\x1b[H\x1b[2J")
    terminal.wait_for("k7f3qd")
    terminal.process.send_signal(signal.SIGINT)

    assert terminal.end() == 130
    assert "\x1b[2mJOB" in terminal.screen
    assert "Come back with: jobctl status -w" in terminal.screen


def test_no_color_is_respected_on_a_terminal(
    config: Settings, commands: Scripted, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR takes every escape byte away."""
    monkeypatch.setenv("NO_COLOR", "1")
    stored.job("k7f3qd")
    terminal = Terminal(config, "status")

    assert terminal.end() == 0
    assert "k7f3qd" in terminal.screen
    assert "\x1b" not in terminal.screen


HEAVY = {"sqlalchemy", "pydantic", "rich", "httpx", "asyncssh", "starlette", "uvicorn", "structlog", "torch", "alembic"}


@pytest.mark.parametrize("verb", [["--help"], ["status"], ["show", "@last"], ["metrics", "@last"]])
def test_looking_imports_nothing_heavy(config: Settings, commands: Scripted, stored: Stored, verb: list[str]) -> None:
    """A verb that only looks is fast because it imports only the standard library and click."""
    stored.job("k7f3qd")
    script = (
        "import sys, atexit, json\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "from daemon.cli import main; main()"
    )

    child = subprocess.run([sys.executable, "-c", script, *verb], capture_output=True, text=True, check=True)

    loaded = {name.partition(".")[0] for name in json.loads(child.stderr.splitlines()[-1])}
    assert loaded & HEAVY == set()
