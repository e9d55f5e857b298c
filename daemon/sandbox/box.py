"""One box, ``python -m daemon.sandbox.box FOLDER [--boot]``: an SSH server on loopback whose machine is a directory.

Commands run by bash in the directory, SFTP starts there, and both see the same real paths. Like OpenSSH it leaves a
command alone when its connection dies, and it may itself be killed and started again without touching what runs.
It is an emulator, not a jail: it listens on loopback only and takes only the keys the sandbox put into its directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import asyncssh
import psutil

from remote_payload.contract import write_whole

from .boxspec import PROCESS_FILE, USER, BoxSpec, authorized_keys, host_key_file, onstart_log
from .commands import run_command
from .disturbance import Disturbances
from .power import Orphanage, switch_off
from .traffic import Meter

BANNER = (
    "Welcome to vast.ai. If authentication fails, try again after a few seconds, and double check your ssh key.\n"
    "Have fun!\n"
)
DOORS = ("direct", "proxy")  # the two ports
REPORT_EVERY_S = 0.1  # how stale the byte counts in the ledger may be


async def serve(folder: Path, *, boot: bool) -> None:
    """Serve the box described in `folder` until SIGTERM."""
    spec = BoxSpec.read(folder)
    home = Path(spec.home)
    os.chdir(home)  # SFTP resolves relative paths here, as exec does
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stop.set))
    disturbances = Disturbances(folder)
    disturbances.read()
    meter = Meter(folder, disturbances, dict(zip(spec.ports, DOORS, strict=True)))
    if boot:
        start_onstart(spec, home)
    await asyncio.sleep(max(0.0, spec.listen_at - time.time()))
    for address, port in zip((spec.address, "127.0.0.1"), spec.ports, strict=True):
        await asyncssh.listen(
            address, port,
            server_factory=lambda: Doorman(home, meter),
            server_host_keys=[host_key(home)],
            process_factory=run_command(home, spec.session_env, disturbances),
            sftp_factory=lambda channel: Sftp(channel, disturbances),
            allow_scp=True, encoding=None, line_editor=False, compression_algs=None, window=16 << 20,
            reuse_address=True,
        )  # fmt: skip
    here = psutil.Process()
    # Only now, when the ports are ours: a second box that failed to get them must not pass for this one.
    write_whole(folder / PROCESS_FILE, json.dumps({"pid": here.pid, "create_time": here.create_time()}))
    orphanage = Orphanage(Path(spec.sandbox))
    while not stop.is_set():
        meter.report()
        disturbances.read()
        meter.cut_if_ordered()
        if orphanage.left_alone():
            switch_off(home, spec.id)
            break
        with contextlib.suppress(TimeoutError):  # the next report is due
            async with asyncio.timeout(REPORT_EVERY_S):
                await stop.wait()
    meter.cut()
    meter.report()


class Doorman(asyncssh.SSHServer):
    """Shows the banner and asks for a key that is in authorized_keys at this moment."""

    def __init__(self, home: Path, meter: Meter) -> None:
        self._keys = authorized_keys(home)
        self._meter = meter

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._meter.attach(conn)

    def begin_auth(self, username: str) -> bool:
        self._connection.send_auth_banner(BANNER)
        if username == USER and self._keys.exists() and self._keys.stat().st_size:
            self._connection.set_authorized_keys(str(self._keys))
        return True


class Sftp(asyncssh.SFTPServer):
    """Files as they are, but for the bytes that are ordered to be wrong."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], disturbances: Disturbances) -> None:
        super().__init__(channel)
        self._disturbances = disturbances

    def read(self, file_obj: Any, offset: int, size: int) -> bytes:
        content = cast(bytes, super().read(file_obj, offset, size))  # a file is read at once, never awaited
        return self._disturbances.spoiled(os.fsdecode(file_obj.name), content)


def host_key(home: Path) -> asyncssh.SSHKey:
    """The box's key: made once, kept as long as its directory."""
    file = host_key_file(home)
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(file))
        file.chmod(0o600)
    return asyncssh.read_private_key(str(file))


def start_onstart(spec: BoxSpec, home: Path) -> None:
    """Run the create call's onstart, as at every start of a container: detached, with the create call's environment."""
    if not spec.onstart:
        return
    script = home / ".onstart.sh"
    script.write_text(spec.onstart)
    with open(onstart_log(home), "ab") as log:
        subprocess.Popen(
            ["/bin/bash", str(script)], cwd=home, env={**spec.session_env, **spec.env}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def main() -> None:
    """Entry point of the box's process."""
    asyncssh.set_log_level("ERROR")
    folder = Path(sys.argv[1])

    async def run() -> None:
        await serve(folder, boot="--boot" in sys.argv[2:])
        # Leaving the event loop in order would kill the commands still running, which must survive.
        os._exit(0)

    asyncio.run(run())


if __name__ == "__main__":
    main()
