"""A systemd user manager of the test's own, in a mount namespace: this machine's own services are not touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("systemctl", "unshare", "nsenter", "mount")
MANAGER = Path("/lib/systemd/systemd")
WITHIN_S = 30.0

# systemd asks for /run/systemd/system to know that it is at home; both folders are this namespace's own.
SCRIPT = """
set -e
mkdir -p /run/systemd /run/user
mount -t tmpfs tmpfs /run/systemd
mkdir /run/systemd/system
mount -t tmpfs tmpfs /run/user
mkdir -m 700 "$XDG_RUNTIME_DIR"
exec {manager} --user --unit=basic.target
"""


def missing() -> str | None:
    """Why no user manager can be had here, or None."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent or not MANAGER.exists():
        return f"no {', '.join(absent) or MANAGER}"
    if os.geteuid() != 0:
        return "a mount namespace needs root here"
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    return probe.stderr.strip() or None if probe.returncode else None


def until(ask: Callable[[], bool], within_s: float) -> None:
    """Ask again and again until the answer is true."""
    deadline = time.monotonic() + within_s
    while not ask():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.1)


class UserManager:
    """`run` runs a command as at this user's terminal, with `env` beside what a log-in gives."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self.env = kept | {"HOME": str(home), "XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}"} | env
        home.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", SCRIPT.format(manager=MANAGER)],
            env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: self.systemctl("is-system-running") in ("running", "degraded"), WITHIN_S)
        except BaseException:
            self.close()
            raise

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Its exit code is not judged."""
        return subprocess.run(self.inside(*command), env=self.env, capture_output=True, text=True, timeout=150)

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.process.pid), "-m", *command]

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", "--user", *words).stdout.strip()

    def close(self) -> None:
        """Ends the manager and every service of it."""
        self.process.terminate()
        self.process.wait(WITHIN_S)
