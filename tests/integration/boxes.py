"""Loopback boxes for the tests of `daemon.box`: a folder, a host key, a real SSH server over them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from daemon.box import challenge
from daemon.box.address import BoxAddress
from daemon.box.box import Box
from daemon.box.keys import own_key
from remote_payload.contract import ArtifactFile, Manifest, Role

SERVER = Path(__file__).with_name("ssh_server.py")
SECRET = "only the market's API carried this"


@dataclass
class LoopbackBox:
    """`home` is the login directory, the box's root is `home`/homeport."""

    home: Path
    key: Path
    port: int
    host_key: str
    server: asyncio.subprocess.Process

    @property
    def root(self) -> Path:
        return self.home / "homeport"

    def address(
        self, *, port: int | None = None, pinned: str | None = None, python: str = sys.executable
    ) -> BoxAddress:
        return BoxAddress(
            instance_id=7001,
            endpoints=(("127.0.0.1", port or self.port),),
            host_key=pinned,
            challenge=SECRET,
            root="homeport",
            python=python,
        )


@asynccontextmanager
async def loopback_box(folder: Path, *, secret: str | None = SECRET, noise: str = "") -> AsyncIterator[LoopbackBox]:
    """A box whose start script has run (`secret` None: has not), with a fresh host key."""
    home = folder / "box"
    home.mkdir(parents=True)
    key = folder / "id_ed25519"
    (folder / "authorized").write_text(own_key(key) + "\n")
    host_key = folder / "host_key"
    public = own_key(host_key)
    if secret is not None:
        await _start_script(home, secret)
    server = await asyncio.create_subprocess_exec(
        sys.executable, SERVER, home, host_key, folder / "authorized", f"--noise={noise}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin and server.stdout
    try:
        port = int(await server.stdout.readline())
        yield LoopbackBox(home, key, port, " ".join(public.split()[:2]), server)
    finally:
        server.stdin.close()
        await server.wait()


@asynccontextmanager
async def ready_box(folder: Path) -> AsyncIterator[tuple[LoopbackBox, Box]]:
    """A box that has proven itself and has the payload."""
    async with loopback_box(folder) as there:
        box = Box(there.address(), there.key)
        await box.prove()
        await box.upload_payload()
        yield there, box
        await box.aclose()


async def _start_script(home: Path, secret: str) -> None:
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", challenge.ENV_NAME: secret}
    script = await asyncio.create_subprocess_exec("/bin/sh", "-c", challenge.onstart(), env=env)
    assert await script.wait() == 0


def manifest_of(root: Path, paths: list[str], chunk_size: int = 1 << 20) -> Manifest:
    """The manifest that the box would write of these files under its root."""
    files = []
    for path in paths:
        content = (root / path).read_bytes()
        chunks = [content[i : i + chunk_size] for i in range(0, len(content), chunk_size)]
        files.append(
            ArtifactFile(
                path, Role.GGUF, len(content), hashlib.sha256(content).hexdigest(),
                [hashlib.sha256(chunk).hexdigest() for chunk in chunks],
            )
        )  # fmt: skip
    return Manifest("job", 1, "nonce", 0.0, chunk_size, files)


class DurableFile:
    """A durable set in one JSON file: what the store is to the daemon."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.resent: dict[str, int] = {}
        self.bad: dict[str, int] = {}
        self.complete: set[str] = set()

    def load(self, path: str, sha256: str, size: int, chunk_size: int) -> bytes:
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        return bytes.fromhex(known.get(path, ""))

    def record(self, path: str, bitmap: bytes, *, complete: bool, resent: int, bad: int) -> None:
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        known[path] = bitmap.hex()
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(known))
        beside.replace(self._path)
        self.resent[path] = resent
        self.bad[path] = bad
        if complete:
            self.complete.add(path)


async def until(condition: Callable[[], bool], within_s: float = 120.0) -> None:
    """Wait for something that happens outside of this process."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - no event tells what another process does
            await asyncio.sleep(0.01)
