"""One person's homeport in a folder: the installed commands, a local market, and ways to hurt them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

TIME_SCALE = 60.0
WITHIN_S = 240.0  # of whatever starts processes, beside other work
CRASHING = Path(__file__).with_name("crashing_jobd.py")
TERMINAL = ("DESTROYED", "ABANDONED", "FAILED", "CANCELLED")

T = TypeVar("T")


def until(ask: Callable[[], T], what: str, within_s: float = WITHIN_S) -> T:
    """Ask again and again until the answer is true; that answer."""
    deadline = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)
    return answer


@dataclass
class Home:
    """`bin` holds the installed jobctl and jobd; `image` is an image reference, `python` the interpreter behind it."""

    folder: Path
    bin: Path
    image: str
    python: Path
    time_scale: float = TIME_SCALE
    box_python: Path | None = None  # has what rebuilding files here needs; None: the daemon's own, which has not
    daemon: subprocess.Popen[bytes] | None = None
    market: subprocess.Popen[str] | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
        self.env = kept | {"HOMEPORT_HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        self.folder.mkdir(parents=True, exist_ok=True)

    # -- processes

    def open_market(self) -> None:
        """A second call, after the market died, goes on with its ledger and its port."""
        command = [
            str(self.bin / "jobctl"), "sandbox", "serve", "--dir", str(self.folder / "market"),
            "--time-scale", str(self.time_scale), "--image", f"{self.image}={self.python}",
        ]  # fmt: skip
        log = open(self.folder / "market.log", "a", encoding="utf-8")  # noqa: SIM115 - the process writes on
        self.market = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=self.env, cwd=self.folder
        )
        log.close()
        assert self.market.stdout is not None
        self.said = json.loads(self.market.stdout.readline())
        self.market.stdout.close()
        self._configure()

    def _configure(self) -> None:
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        (config / "config.toml").write_text(
            f'market_url = "{self.said["url"]}"\ntime_scale = {self.time_scale}\n'
            + (f'box_python = "{self.box_python}"\n\n' if self.box_python else "\n")
            + f'[image]\nref = "{self.image}"\nroot = "homeport"\npython = "bin/python"\ncuda = false\n'
        )
        key = config / "vast_api_key"
        key.touch(mode=0o600)
        key.write_text(self.said["api_key"])

    def start(self, *crash: str) -> None:
        """The daemon; with `crash` (event kind, before|after, which one) it kills itself at that commit."""
        command = [str(self.bin / "python"), str(CRASHING), *crash] if crash else [str(self.bin / "jobd")]
        with open(self.folder / "jobd.out", "ab") as out:
            self.daemon = subprocess.Popen(command, stdout=out, stderr=out, env=self.env, cwd=self.folder)
        gone = self.daemon.poll if crash else lambda: None  # it may die before it answers
        until(
            lambda: gone() or (self._listens() and self.jobctl("status", check=None).returncode == 0),
            "the daemon answers",
        )

    def _listens(self) -> bool:
        """Whether it is worth asking it: a whole jobctl for each try costs more than the daemon's start."""
        address = str(self.folder / "state" / "jobd.sock")
        with socket.socket(socket.AF_UNIX) as line:
            try:
                line.connect(address)
            except FileNotFoundError:
                return (self.folder / "state" / "jobd.json").exists()  # too long a path: it listens on a port
            except ConnectionRefusedError:
                return False  # of one that was killed
            except OSError:
                return True  # the path is too long for us as well
        return True

    def crashed(self, within_s: float = WITHIN_S) -> bool:
        """Wait until the daemon has killed itself."""
        assert self.daemon is not None
        return self.daemon.wait(within_s) == -signal.SIGKILL

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(number)
        self.daemon.wait(WITHIN_S)

    def close(self) -> None:
        for process in (self.daemon, self.market):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(WITHIN_S)

    # -- the person

    def jobctl(
        self, *arguments: str, check: int | None = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One command; asserts its exit code unless `check` is None."""
        done = subprocess.run(
            [self.bin / "jobctl", *arguments], capture_output=True, text=True, env=self.env, input=stdin or "",
            timeout=WITHIN_S, cwd=self.folder,
        )  # fmt: skip
        assert check is None or done.returncode == check, (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def submit(self, job_file: Path, *options: str, check: int | None = 0) -> str:
        self.jobctl("submit", "-y", *options, str(job_file), check=check)
        return self.job("@last")["id"]

    def job(self, ref: str) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(self.jobctl("show", ref, "--json", check=None).stdout)["job"]
        return view

    def reach(self, job: str, *states: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        """Wait until the job is in one of `states`, or HELD when that is among them; its view then."""

        def look() -> dict[str, Any] | None:
            view = self.job(job)
            held = view["hold"] is not None
            if view["state"] in states or (held and "HELD" in states):
                return view
            assert not held and view["state"] not in TERMINAL, f"{view['state']} {view['hold']}"
            return None

        return until(look, f"job {job} reaches {states}", within_s)

    # -- the market's own word

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        reply = httpx.request(
            method, self.said["url"] + path, headers={"Authorization": f"Bearer {self.said['api_key']}"},
            json=body or None, timeout=20,
        )  # fmt: skip
        assert reply.status_code == 200, reply.text
        return reply.json()

    def ledger(self) -> list[dict[str, Any]]:
        instances: list[dict[str, Any]] = self._ask("GET", "/sandbox/ledger")["instances"]
        return instances

    def box(self) -> Path:
        """The run folder on the one box there is."""
        (instance,) = (self.folder / "market" / "instances").iterdir()
        return instance / "homeport" / "run"

    def journal(self, method: str, path: str = "") -> list[dict[str, Any]]:
        """Requests of this method whose path contains `path`, in order."""
        return [
            r for r in self._ask("GET", "/sandbox/journal")["requests"] if r["method"] == method and path in r["path"]
        ]

    def fault(self, name: str, *, count: int = 1, match: dict[str, str] | None = None, **params: Any) -> str:
        body = {"fault": name, "count": count, "params": params} | ({"match": match} if match else {})
        return str(self._ask("POST", "/sandbox/faults", **body)["id"])

    def heal(self, fault: str) -> None:
        self._ask("DELETE", f"/sandbox/faults/{fault}")

    def events(self, job: str, kind: str = "") -> list[dict[str, Any]]:
        """Read from the database itself, so that a dead daemon can be asked too."""
        import sqlite3

        db = sqlite3.connect(f"file:{self.folder / 'state' / 'homeport.db'}?mode=ro", uri=True)
        try:
            rows = db.execute("SELECT kind, body, at FROM events WHERE job_id = ? ORDER BY id", (job,)).fetchall()
        finally:
            db.close()
        return [{"kind": k, "at": at, **json.loads(body)} for k, body, at in rows if k.startswith(kind)]
