"""What keeps this computer awake: the system's own tool, run for real against a stand-in for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.platform import KeptAwake

ROOT = Path(__file__).parents[2]
# As the real one: it runs the command after its options, and notes how it was called and that the command ended.
INHIBIT = """#!/bin/sh
printf '%s\\n' "$@" > {folder}/calling
for word; do last=$word; done
mv {folder}/calling {folder}/called
"$last"
touch {folder}/ended
"""
KEEPS = """
import sys
from daemon.platform import KeptAwake
kept = KeptAwake("x")
print("on", flush=True)
sys.stdin.read()
"""
WAITS_S = 20.0


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in `systemd-inhibit`, first on PATH."""
    path = tmp_path / "systemd-inhibit"
    path.write_text(INHIBIT.format(folder=tmp_path))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("sys.platform", "linux")
    return path


def until(seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAITS_S
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sleep_is_inhibited_until_the_end(tool: Path) -> None:
    """The tool is told what is inhibited, by whom and why, each in one word, and runs until `end`, not longer."""
    kept = KeptAwake("bringing home k7f3qd, m2x9ab")
    until((tool.parent / "called").exists)

    assert kept.holds and not (tool.parent / "ended").exists()
    assert (tool.parent / "called").read_text().splitlines() == [
        "--what=sleep:idle",
        "--who=homeport",
        "--why=bringing home k7f3qd, m2x9ab",
        "cat",
    ]
    kept.end()
    assert (tool.parent / "ended").exists() and not kept.holds


def test_the_computer_may_sleep_when_we_are_killed(tool: Path) -> None:
    """The tool ends with this process, however that ends."""
    with subprocess.Popen(
        [sys.executable, "-c", KEEPS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"on\n"
        until((tool.parent / "called").exists)
        assert not (tool.parent / "ended").exists()
        process.kill()
    until((tool.parent / "ended").exists)


def test_a_refusal_is_seen(tool: Path) -> None:
    """The tool ends at once where the system does not let it."""
    tool.write_text("#!/bin/sh\nexit 1\n")

    kept = KeptAwake("x")

    until(lambda: not kept.holds)
    kept.end()


def test_without_the_tool_it_is_an_os_error(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OSError):
        KeptAwake("x")


def test_a_tool_that_hangs_is_not_waited_for(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait half a minute for a service that is gone, and the daemon's loop would wait with it."""
    tool.write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr("daemon.platform._ENDS_WITHIN_S", 0.2, raising=False)
    kept = KeptAwake("x")

    began = time.monotonic()
    kept.end()

    assert time.monotonic() - began < 10 and not kept.holds
