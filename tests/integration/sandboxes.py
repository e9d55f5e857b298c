"""A real sandbox process for the tests, its API, and SSH into its boxes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import httpx

ROOT = Path(__file__).resolve().parents[2]
TIME_SCALE = 50.0
OFFER = 10101  # one H100 of the machine 101
WITHIN_S = 120.0  # of whatever starts processes, beside other work
FOR_EVER = 3600.0  # seconds; until the order is replaced

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]], within_s: float = WITHIN_S) -> T:
    """Ask again and again until the answer is true; that answer."""
    deadline = time.monotonic() + within_s
    while not (answer := await ask()):
        assert time.monotonic() < deadline, f"still {answer!r} after {within_s:g} s"
        await asyncio.sleep(0.02)
    return answer


class SandboxProcess:
    """One sandbox over one directory; may be killed and started again."""

    def __init__(self, directory: Path, *options: str, time_scale: float = TIME_SCALE) -> None:
        self.directory = directory
        self._options = options
        self._time_scale = time_scale
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "daemon.sandbox.serve", "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            [*command, "--time-scale", str(self._time_scale), *self._options], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert self.process.stdout is not None
        said = json.loads(self.process.stdout.readline())
        self.process.stdout.close()
        self.url, self.api_key = said["url"], said["api_key"]
        self.http = httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=20
        )

    async def end(self, sign: int = signal.SIGTERM) -> None:
        """End the process (SIGKILL: as a crash) and wait for it."""
        await self.http.aclose()
        if self.process.poll() is None:
            self.process.send_signal(sign)
        await asyncio.to_thread(self.process.wait, WITHIN_S)

    # The market

    async def rent(self, offer: int = OFFER, **body: Any) -> int:
        """Create an instance with our key attached; its id."""
        reply = await self.create(offer, **body)
        assert reply.status_code == 200, reply.text
        instance: int = reply.json()["new_contract"]
        attached = await self.http.post(
            f"/api/v0/instances/{instance}/ssh/", json={"ssh_key": self.key.export_public_key().decode()}
        )
        assert attached.json()["success"], attached.text
        return instance

    async def create(self, offer: int = OFFER, **body: Any) -> httpx.Response:
        asked = {
            "image": "box",
            "disk": 20,
            "runtype": "ssh_direc ssh_proxy",
            "cancel_unavail": True,
            "label": "hp-test",
        }
        return await self.http.put(f"/api/v0/asks/{offer}/", json={**asked, **body})

    async def put(self, instance: int, **change: Any) -> dict[str, Any]:
        reply = await self.http.put(f"/api/v0/instances/{instance}/", json=change)
        body: dict[str, Any] = reply.json()
        return body

    async def destroy(self, instance: int) -> httpx.Response:
        return await self.http.request("DELETE", f"/api/v0/instances/{instance}/", json={})

    async def ask(self, path: str) -> dict[str, Any]:
        """GET, as often as the rate limit wants."""

        async def served() -> httpx.Response | None:
            reply = await self.http.get(path)
            return None if reply.status_code == 429 else reply

        reply = await until(served)
        assert reply is not None
        body: dict[str, Any] = reply.json()
        return body

    async def show(self, instance: int) -> dict[str, Any] | None:
        row: dict[str, Any] | None = (await self.ask(f"/api/v0/instances/{instance}/?owner=me"))["instances"]
        return row

    async def listed(self) -> list[int]:
        return [row["id"] for row in (await self.ask("/api/v1/instances/"))["instances"]]

    async def status(self, instance: int) -> str | None:
        row = await self.show(instance)
        return None if row is None else row["actual_status"]

    async def reaches(self, instance: int, status: str) -> None:
        async def there() -> bool:
            return await self.status(instance) == status

        await until(there)

    async def gone(self, instance: int) -> None:
        async def absent() -> bool:
            return await self.show(instance) is None

        await until(absent)

    async def offers(self, **query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.http.post("/api/v0/bundles/", json=query)).json()["offers"]
        return found

    # The sandbox's own pages

    async def ledger(self, instance: int) -> dict[str, Any]:
        rows = (await self.http.get("/sandbox/ledger")).json()["instances"]
        (row,) = [row for row in rows if row["id"] == instance]
        return dict(row)

    async def journal(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/sandbox/journal")).json()["requests"])

    async def fault(self, fault: str, **order: Any) -> int:
        reply = await self.http.post("/sandbox/faults", json={"fault": fault, **order})
        assert reply.status_code == 200, reply.text
        return int(reply.json()["id"])

    # The boxes

    def home(self, instance: int) -> Path:
        return self.directory / "instances" / str(instance)

    async def connect(self, instance: int) -> asyncssh.SSHClientConnection:
        """Log in as soon as the box lets us; the caller closes the connection."""
        await self.reaches(instance, "running")

        async def try_once() -> asyncssh.SSHClientConnection | None:
            row = await self.show(instance)
            if row is None or row["ports"] is None:
                return None
            port = int(row["ports"]["22/tcp"][0]["HostPort"])
            try:
                return await self.login(port)
            except (OSError, asyncssh.Error):
                return None

        connection = await until(try_once)
        assert connection is not None
        return connection

    async def login(self, port: int, username: str = "root") -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            "127.0.0.1", port, username=username, client_keys=[self.key], known_hosts=None, config=None,
            agent_path=None,
        )  # fmt: skip


def alive(pid: int) -> bool:
    """Whether the process still runs."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second: it ended between open and read
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"
