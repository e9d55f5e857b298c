"""The boxes as processes and directories: start, reach again, cut off, switch off, delete.

Layout of the sandbox's directory: ``instances/<id>/`` is the box's own disk, ``boxes/<id>/`` what the sandbox keeps
about it (spec, traffic, log), out of the box's reach. A box outlives a killed sandbox and is found again by its pid.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from remote_payload.contract import write_whole

from . import power
from .boxspec import (
    MARK,
    ORDERS,
    PROCESS_FILE,
    SPEC_FILE,
    STRUCK_FILE,
    USER,
    BoxSpec,
    authorized_keys,
    host_key_file,
    onstart_log,
)
from .images import Image
from .instances import Instance
from .traffic import Traffic

PORTS = range(20_000, 32_000)  # below the ephemeral ports, so that no client connection takes one before its box does
PID_FILE = "sandbox.pid"  # in the sandbox's directory, replaced at each start
TERMINATE_WITHIN_S = 5.0
RESTART_AFTER_S = 1.0


class Boxes:
    """All boxes of one sandbox directory."""

    def __init__(self, root: Path, url: str) -> None:
        self._root = root
        self._url = url
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._started_at: dict[int, float] = {}
        write_whole(root / PID_FILE, str(os.getpid()))

    def home(self, instance_id: int) -> Path:
        return self._root / "instances" / str(instance_id)

    def _folder(self, instance_id: int) -> Path:
        return self._root / "boxes" / str(instance_id)

    def create(self, instance: Instance, image: Image) -> None:
        """Make the disk, as the image brings it."""
        (self.home(instance.id) / ".ssh").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder(instance.id).mkdir(mode=0o700, parents=True, exist_ok=True)
        image.install(self.home(instance.id))

    def allow(self, instance: Instance, now: float) -> None:
        """Write the keys that are effective at `now`; sshd reads the file at every login."""
        file = authorized_keys(self.home(instance.id))
        text = "".join(f"{key.public_key}\n" for key in instance.keys if key.effective_at <= now)
        if not file.exists() or file.read_text() != text:
            write_whole(file, text)

    def start(self, instance: Instance, *, boot: bool) -> None:
        """Start the sshd of a running instance; with `boot` its container too, which runs onstart."""
        if instance.ports is None:
            raise ValueError(f"instance {instance.id} is not running")
        home, folder = self.home(instance.id), self._folder(instance.id)
        spec = BoxSpec(
            id=instance.id,
            home=str(home),
            address=instance.address,
            ports=instance.ports,
            listen_at=instance.ssh_from,
            sandbox=str(self._root / PID_FILE),
            session_env=self._session_env(instance),
            env={name: value for name, value in instance.env.items() if not name.startswith("-")},
            onstart=instance.onstart,
        )
        write_whole(folder / SPEC_FILE, json.dumps(asdict(spec)))
        with open(folder / "sshd.log", "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "daemon.sandbox.box", str(folder), *(["--boot"] if boot else [])],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._children[instance.id] = child
        self._started_at[instance.id] = time.monotonic()

    def may_start(self, instance_id: int) -> bool:
        """Whether the last start is long enough ago: a box that cannot come up is not tried at every tick."""
        return time.monotonic() - self._started_at.get(instance_id, float("-inf")) >= RESTART_AFTER_S

    def _session_env(self, instance: Instance) -> dict[str, str]:
        """All that a command sees; the create call's own variables are for onstart only, as on the market."""
        return {
            "HOME": str(self.home(instance.id)),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "USER": USER,
            "SHELL": "/bin/bash",
            "CONTAINER_ID": str(instance.id),
            "CONTAINER_API_KEY": instance.api_key,
            "VAST_CONTAINERLABEL": f"C.{instance.id}",
            "VAST_URL": self._url,
            MARK: str(instance.id),
        }

    def is_up(self, instance_id: int) -> bool:
        """Whether the box's sshd process lives, whoever started it."""
        return self._process(instance_id) is not None

    def _process(self, instance_id: int) -> psutil.Process | None:
        """Our own child, or the one an earlier sandbox left listening."""
        child = self._children.get(instance_id)
        if child is not None and child.poll() is None:
            return psutil.Process(child.pid)
        file = self._folder(instance_id) / PROCESS_FILE
        if not file.exists():
            return None
        known = json.loads(file.read_text())
        try:
            process = psutil.Process(known["pid"])
            same = process.create_time() == known["create_time"] and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # it ended, so there is none
            return None
        return process if same else None

    async def silence(self, instance_id: int) -> None:
        """End sshd and its connections; what runs in the box goes on."""
        process = self._process(instance_id)
        if process is not None:
            process.terminate()
            _, stubborn = await asyncio.to_thread(psutil.wait_procs, [process], TERMINATE_WITHIN_S)
            for process in stubborn:
                process.kill()
            self.is_up(instance_id)  # reaps our own child

    def order(self, instance_id: int, order: int, fault: str, params: dict[str, Any]) -> None:
        """Order a fault of the box's sshd, which may yet have to boot. It replaces the last one of its kind."""
        folder = self._folder(instance_id) / ORDERS
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = {**params, "order": order, "until": time.time() + params.get("seconds", 0.0)}
        write_whole(folder / f"{fault}.json", json.dumps(told))

    def struck(self, order: int) -> int:
        """How often an order has struck so far, in all boxes."""
        files = self._root.glob(f"boxes/*/{STRUCK_FILE}")
        return sum(file.read_text().split().count(str(order)) for file in files)

    def forget_host_key(self, instance_id: int) -> None:
        """sshd makes another one at its next start."""
        host_key_file(self.home(instance_id)).unlink(missing_ok=True)

    async def switch_off(self, instance_id: int) -> None:
        """Stop the container: sshd and every process started in it."""
        await self.silence(instance_id)
        await asyncio.to_thread(power.switch_off, self.home(instance_id), instance_id)

    async def wipe(self, instance_id: int) -> None:
        """Delete the disk of a box that is switched off. Its traffic stays known."""
        await asyncio.to_thread(shutil.rmtree, self.home(instance_id), ignore_errors=False)

    def exists(self, instance_id: int) -> bool:
        return self.home(instance_id).exists()

    def traffic(self, instance_id: int) -> Traffic:
        return Traffic.read(self._folder(instance_id))

    def log(self, instance_id: int) -> str:
        """What the container printed: onstart's output, after sshd's."""
        files = (self._folder(instance_id) / "sshd.log", onstart_log(self.home(instance_id)))
        return "".join(file.read_text(errors="replace") for file in files if file.exists())


def free_ports(taken: Iterable[int], address: str) -> tuple[int, int]:
    """Two ports nobody listens on, of this loopback address and of the usual one."""
    used = set(taken)
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if port not in used and _is_free(address if not found else "127.0.0.1", port):
            found.append(port)
        if len(found) == 2:
            return found[0], found[1]
    raise RuntimeError(f"no two free ports among {PORTS.start}-{PORTS.stop}")


def are_free(ports: tuple[int, int], address: str) -> bool:
    """Whether nobody has come to listen there since `free_ports` found that nobody did."""
    return all(map(_is_free, (address, "127.0.0.1"), ports))


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:  # somebody else's
            return False
    return True
