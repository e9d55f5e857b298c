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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from .ledger import Traffic

BANNER = (
    "Welcome to vast.ai. If authentication fails, try again after a few seconds, and double check your ssh key.\n"
    "Have fun!\n"
)
USER = "root"
PIECE = 256 << 10  # bytes carried at a time
REPORT_EVERY_S = 0.1  # how stale the byte counts in the ledger may be
LOOK_EVERY_S = 5.0  # how often a box looks whether its sandbox lives
ORPHAN_AFTER_S = 120.0  # a box whose sandbox has been dead for so long switches itself off

SPEC_FILE, TRAFFIC_FILE, CUT_FILE, PROCESS_FILE = "box.json", "traffic.json", "cut.json", "process.json"
MARK = "HOMEPORT_BOX"  # in the environment of every process of a box; with HOME it tells whose it is


@dataclass(frozen=True)
class BoxSpec:
    """What the sandbox tells a box.

    `ports`: direct and proxy; `listen_at`: unix seconds; `sandbox`: file with the pid of the sandbox of the day;
    `session_env`: all that a command sees; `env`: what onstart sees beside it.
    """

    id: int
    home: str
    ports: tuple[int, int]
    listen_at: float
    sandbox: str
    session_env: dict[str, str]
    env: dict[str, str]
    onstart: str


def authorized_keys(home: Path) -> Path:
    return home / ".ssh" / "authorized_keys"


def onstart_log(home: Path) -> Path:
    return home / ".onstart.log"


def processes_of(home: Path, box_id: int) -> list[psutil.Process]:
    """Every process that was started in this box, however it was detached."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
        except (psutil.Error, OSError):
            continue  # another user's, or gone meanwhile
        if environ.get(MARK) == str(box_id) and environ.get("HOME") == str(home):
            found.append(process)
    return found


class Meter:
    """Counts the bytes of every connection, and cuts them all when an ordered number has passed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / TRAFFIC_FILE
        self._cut_file = folder / CUT_FILE
        self._connections: set[asyncio.Transport] = set()
        self._reported = Traffic(**json.loads(self._file.read_text())) if self._file.exists() else Traffic()
        self._in, self._out = self._reported.bytes_in, self._reported.bytes_out
        self._cut_at: int | None = None
        self.read_orders()

    def attach(self, connection: asyncssh.SSHServerConnection) -> None:
        """Count what `connection` receives and sends; asyncssh has no hook for it, so both ends are wrapped."""
        transport: Any = connection._transport
        receive, send = connection.data_received, transport.write

        def received(chunk: bytes, datatype: int | None = None) -> None:
            self._in += len(chunk)
            receive(chunk, datatype)
            self._cut_if_due()

        def sent(chunk: bytes) -> None:
            self._out += len(chunk)
            send(chunk)
            self._cut_if_due()

        connection.data_received = received  # type: ignore[method-assign, assignment]
        transport.write = sent
        self._connections.add(transport)

    def cut(self) -> None:
        """Drop every connection without a word."""
        for transport in self._connections:
            transport.abort()
        self._connections.clear()

    def read_orders(self) -> None:
        """Take the order of the fault `ssh_cut`: {"after_bytes": n} from now."""
        if self._cut_file.exists():
            order = json.loads(self._cut_file.read_text())
            self._cut_file.unlink()
            self._cut_at = self._in + self._out + int(order["after_bytes"])
            self._cut_if_due()

    def report(self) -> None:
        """Write the counts for the sandbox, whole."""
        now = Traffic(self._in, self._out)
        if now != self._reported:
            beside = self._file.with_suffix(".tmp")
            beside.write_text(json.dumps(asdict(now)))
            beside.replace(self._file)
            self._reported = now

    def _cut_if_due(self) -> None:
        if self._cut_at is not None and self._in + self._out >= self._cut_at:
            self._cut_at = None
            self.cut()


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


def run_command(home: Path, env: dict[str, str]) -> Callable[[asyncssh.SSHServerProcess[bytes]], Any]:
    """The coroutine that runs one session's command; it ends when the command has closed its output, as in OpenSSH."""

    async def run(session: asyncssh.SSHServerProcess[bytes]) -> None:
        command = ["-c", session.command] if session.command is not None else []
        child = await asyncio.create_subprocess_exec(
            "/bin/bash", *command, cwd=home, env=env, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        feeding = asyncio.create_task(feed(session, child))
        try:
            await asyncio.gather(carry(child.stdout, session.stdout), carry(child.stderr, session.stderr))
            code = await child.wait()
        except (OSError, asyncssh.Error):
            hang_up(child)
            return
        finally:
            feeding.cancel()
        if code < 0:
            session.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
        else:
            session.exit(code)

    return run


def hang_up(child: asyncio.subprocess.Process) -> None:
    """The connection died: the command goes on, and meets a broken pipe if it writes, as under OpenSSH."""
    transport: Any = child._transport  # type: ignore[attr-defined]  # asyncio offers no other way to close one pipe
    for fd in (1, 2):
        transport.get_pipe_transport(fd).close()


async def carry(source: asyncio.StreamReader | None, target: asyncssh.SSHWriter[bytes]) -> None:
    """Bring a command's output to the client, no faster than the client reads."""
    while source is not None and (chunk := await source.read(PIECE)):
        target.write(chunk)
        await target.drain()


async def feed(session: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process) -> None:
    """Bring the client's input and signals to a command, until either side closes."""
    stdin = child.stdin
    if stdin is None:
        return
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                chunk = await session.stdin.read(PIECE)
            except asyncssh.SignalReceived as received:
                child.send_signal(signal.Signals[f"SIG{received.signal}"])
                continue
            if not chunk:
                break
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()


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


def host_key(home: Path) -> asyncssh.SSHKey:
    """The box's key: made once, kept as long as its directory."""
    file = home / ".ssh" / "ssh_host_ed25519_key"
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(file))
        file.chmod(0o600)
    return asyncssh.read_private_key(str(file))


def switch_off(home: Path, box_id: int) -> None:
    """Kill every process of the box; returns when none is left."""
    while processes := processes_of(home, box_id):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=1.0)


class Orphanage:
    """Tells when the sandbox has been dead for too long, so that nothing is left running by a killed test."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file
        self._seen = self._looked = time.monotonic()

    def left_alone(self) -> bool:
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if self._pid_file.exists() and psutil.pid_exists(int(self._pid_file.read_text())):
                self._seen = now
        return now - self._seen > ORPHAN_AFTER_S


async def serve(folder: Path, *, boot: bool) -> None:
    """Serve the box described in `folder` until SIGTERM."""
    raw = json.loads((folder / SPEC_FILE).read_text())
    spec = BoxSpec(**{**raw, "ports": tuple(raw["ports"])})
    home = Path(spec.home)
    os.chdir(home)  # SFTP resolves relative paths here, as exec does
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(stop.set))
    meter = Meter(folder)
    if boot:
        start_onstart(spec, home)
    await asyncio.sleep(max(0.0, spec.listen_at - time.time()))
    for port in spec.ports:
        await asyncssh.listen(
            "127.0.0.1", port,
            server_factory=lambda: Doorman(home, meter),
            server_host_keys=[host_key(home)],
            process_factory=run_command(home, spec.session_env),
            sftp_factory=asyncssh.SFTPServer,
            allow_scp=True, encoding=None, line_editor=False, compression_algs=None, window=16 << 20,
            reuse_address=True,
        )  # fmt: skip
    orphanage = Orphanage(Path(spec.sandbox))
    while not stop.is_set():
        meter.report()
        meter.read_orders()
        if orphanage.left_alone():
            switch_off(home, spec.id)
            break
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), REPORT_EVERY_S)
    meter.cut()
    meter.report()


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
