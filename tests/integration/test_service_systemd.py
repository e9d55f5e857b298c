"""`jobctl up` and `down` with a real systemd user manager: started, watched, restarted, never two."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import SandboxProcess
from user_manager import UserManager, missing, until

JOBCTL = Path(sys.executable).with_name("jobctl")
IMPATIENT = "[Service]\nWatchdogSec=8\nRestartSec=0.2\n"  # as production in all else

pytestmark = [pytest.mark.full, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


@pytest.fixture
def market(tmp_path: Path) -> Iterator[SandboxProcess]:
    process = SandboxProcess(tmp_path / "market")
    yield process
    asyncio.run(process.end())


@pytest.fixture
def user(tmp_path: Path, market: SandboxProcess) -> Iterator[UserManager]:
    """A log-in whose environment names the market and its key."""
    env = {"HOMEPORT_HOME": str(tmp_path / "home"), "VAST_URL": market.url, "VAST_API_KEY": market.api_key}
    manager = UserManager(tmp_path / "user", env)
    yield manager
    manager.close()


def jobctl(user: UserManager, *words: str, code: int = 0) -> str:
    done = user.run(str(JOBCTL), *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def unit(user: UserManager) -> str:
    (file,) = (Path(user.env["HOME"]) / ".config/systemd/user").glob("homeport-*.service")
    return file.name


def shown(user: UserManager, name: str, key: str) -> str:
    return user.systemctl("show", name, "--property", key, "--value")


def test_up_installs_starts_and_is_said_by_systemd(user: UserManager, market: SandboxProcess) -> None:
    """One command: enabled, ready, its status line in systemctl; the key is in no unit, and in no command line."""
    said = jobctl(user, "up")

    name = unit(user)
    text = user.systemctl("cat", name)
    assert "installed" in said and "journalctl" in said
    assert user.systemctl("is-enabled", name) == "enabled"
    until(lambda: shown(user, name, "ActiveState") == "active", within_s=60)  # it answers before its first look ends
    assert shown(user, name, "StatusText") == "0 jobs, 0 machines, $0.00/h"
    command = Path("/proc", shown(user, name, "MainPID"), "cmdline").read_text()
    assert market.api_key not in text + command + said
    assert "in place" in jobctl(user, "up")
    assert "systemd user unit, running, started at log-in" in jobctl(user, "doctor", code=0 if verifier() else 1)


def test_a_killed_and_a_hung_daemon_are_started_anew(user: UserManager) -> None:
    """SIGKILL is noticed at once, SIGSTOP by the watchdog; the process is another one, and answers."""
    jobctl(user, "up")
    name = unit(user)
    beside = Path(user.env["HOME"]) / ".config/systemd/user" / f"{name}.d"
    beside.mkdir()
    (beside / "impatient.conf").write_text(IMPATIENT)
    user.systemctl("daemon-reload")
    user.systemctl("restart", name)

    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = shown(user, name, "MainPID")
        user.run("kill", f"-{number}", before)

        def answers(before: str = before) -> bool:
            other = shown(user, name, "MainPID") not in (before, "0")
            ready = shown(user, name, "ActiveState") == "active"  # until then no watchdog looks, but a start-up limit
            return other and ready and user.run(str(JOBCTL), "status").returncode == 0

        until(answers, within_s=120)


def test_never_two(user: UserManager) -> None:
    """While one runs by hand `up` and `down` refuse and name it; while the service runs `serve` does."""
    by_hand = subprocess.Popen(user.inside(str(JOBCTL), "serve"), env=user.env, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        return user.run(str(JOBCTL), "status").returncode == 0

    try:
        until(answers, within_s=60)
        for verb in ("up", "down"):
            assert "by hand (process " in jobctl(user, verb, code=1)
    finally:
        by_hand.terminate()
        by_hand.wait(30)
    jobctl(user, "up")
    assert "another jobd (pid " in jobctl(user, "serve", code=1)


def test_down_stops_disables_and_removes_the_service_alone(user: UserManager) -> None:
    """`down` ends it now and at the next log-in; `--uninstall` takes unit and environment, and leaves the database."""
    jobctl(user, "up")
    name = unit(user)

    said = jobctl(user, "down")

    assert "Nothing is being rented." in said
    assert (shown(user, name, "ActiveState"), user.systemctl("is-enabled", name)) == ("inactive", "disabled")

    jobctl(user, "down", "--uninstall")

    home = Path(user.env["HOMEPORT_HOME"])
    assert not list((Path(user.env["HOME"]) / ".config/systemd/user").glob("homeport-*.service"))
    assert not (home / "config/service.env").exists()
    assert (home / "state/homeport.db").exists()


def test_a_daemon_that_cannot_begin_is_said(user: UserManager) -> None:
    """A key that the daemon will not take ends `up` with where to read why, not with a wait."""
    home = Path(user.env["HOMEPORT_HOME"]) / "config"
    home.mkdir(parents=True)
    (home / "config.toml").write_text("nonsense = 1\n")

    assert "nonsense" in jobctl(user, "up", code=1)


def verifier() -> bool:
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        return False
    return True
