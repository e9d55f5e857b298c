"""The runner's command line: start, status, stop; and `chain`, the detached process that `start` leaves behind.

Nothing here trains. `start` may be called any number of times with one nonce: it makes sure that a chain lives and
says where it stands.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from remote_payload import chain, contract
from remote_payload.contract import ContractError, Exit, JobFile, Status
from remote_payload.layout import Layout
from remote_payload.processes import Identity, boot_id

START_PATIENCE_S = 20.0  # for the new chain to write its identity, or for killed leftovers to let go of the lock


def start(layout: Layout, nonce: str) -> int:
    """Have the job's stages running. Exit 10 when `nonce` is not this job's, or another job's chain is alive."""
    job = layout.read_job()
    nonces = [plan.nonce for plan in job.stages]
    if nonce not in nonces:
        return _refuse(f"job.json does not list the nonce {nonce}")
    living = _living(layout)
    if living and nonce not in living.nonces:
        return _refuse("the chain of another job or attempt is alive; stop it first")
    layout.stop.unlink(missing_ok=True)
    before, started = _status(layout), None
    if not living and not _is_over(layout, job):
        _end_leftovers(layout)
        started = _detach(layout)
    _await_word(layout, before, started)
    print(json.dumps(_status(layout)))
    return Exit.OK


def stop(layout: Layout) -> int:
    """Ask the running stage to save a checkpoint and end. Without a chain there is nothing to ask."""
    if _living(layout):
        layout.stop.touch()
    print(json.dumps(_status(layout)))
    return Exit.OK


def status(layout: Layout) -> int:
    report = {
        "boot_id": boot_id(),
        "alive": _living(layout) is not None,
        "status": _status(layout),
        "log_size": _size(layout.log),
        "events_size": _size(layout.events),
    }
    print(json.dumps(report))
    return Exit.OK


def _living(layout: Layout) -> Identity | None:
    identity = Identity.read(layout.chain)
    return identity if identity and identity.is_alive() else None


def _is_over(layout: Layout, job: JobFile) -> bool:
    """Whether a chain would find nothing to do: a stage failed under its nonce, or all are done."""
    markers = [layout.markers(plan.nonce) for plan in job.stages]
    failed = any((marker / contract.FAILED_FILE).exists() for marker in markers)
    return failed or all((marker / contract.DONE_FILE).exists() for marker in markers)


def _end_leftovers(layout: Layout) -> None:
    """Kill the stage that outlived its chain: two trainers must never write one folder.

    A lock still held proves that a process of the dead chain's group lives, so the group's number is still its own.
    """
    dead = Identity.read(layout.chain)
    with open(layout.chain_lock, "a") as lock:
        deadline = time.monotonic() + START_PATIENCE_S
        while not _try_lock(lock.fileno()) and not _living(layout):
            if dead and dead.boot_id == boot_id():
                with contextlib.suppress(ProcessLookupError):  # the last of the group went meanwhile
                    os.killpg(dead.pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise TimeoutError("a stage of the earlier chain holds the lock and cannot be killed")
            time.sleep(0.05)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # which is the answer
        return False
    return True


def _detach(layout: Layout) -> subprocess.Popen[bytes]:
    """Start the chain in its own session."""
    with open(layout.log, "ab") as log:
        return subprocess.Popen(
            [chain.interpreter(), "-m", "remote_payload.run", "chain", "--root", str(layout.root.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_word(layout: Layout, before: dict[str, Any] | None, started: subprocess.Popen[bytes] | None) -> None:
    """Wait for the first heartbeat of the chain that was `started`, so that the printed status is its own.

    Or of the first chain ever: another call may have started it a moment ago.
    """
    deadline = time.monotonic() + START_PATIENCE_S
    while (now := _status(layout)) == before and time.monotonic() < deadline:
        if not (started and started.poll() is None) and not (now is None and _living(layout)):
            return
        time.sleep(0.02)


def _status(layout: Layout) -> dict[str, Any] | None:
    """status.json, None before the first chain. It is read as the contract reads it, then shown as it is."""
    if not layout.status.exists():
        return None
    text = layout.status.read_bytes()
    contract.load(Status, text)
    return dict(json.loads(text))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refuse(reason: str) -> int:
    print(reason, file=sys.stderr)
    return Exit.BAD_CONFIG


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("start", "chain", "status", "stop"):
        command = commands.add_parser(name)
        command.add_argument("--root", type=Path, default=Path())
        if name == "start":
            command.add_argument("--nonce", required=True)
    args = parser.parse_args(argv)
    layout = Layout(args.root)
    try:
        match args.command:
            case "start":
                return start(layout, args.nonce)
            case "chain":
                chain.live(layout)
                return Exit.OK
            case "stop":
                return stop(layout)
            case _:
                return status(layout)
    except (ContractError, FileNotFoundError) as error:
        return _refuse(str(error))


if __name__ == "__main__":
    sys.exit(main())
