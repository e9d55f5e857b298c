"""The processes of one step: one, or for `placement: ddp` a rank for every card, started and ended together.

Not torchrun: its ranks leave the chain's process group and drop the chain's lock, so after a kill of the chain nobody
could find and end them. What a rank is told is what torchrun would tell it. Knows no torch, since the chain knows none.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from remote_payload.contract import Exit

GRACE_S = 10.0  # for the other ranks to end by themselves, once one has failed or the first has finished
PORTS = range(15000, 30000)  # below what the kernel gives to outgoing connections, which come and go

# How cards may reach each other, the fastest first. On some rented machines they cannot do so directly, but through the
# host's memory.
WAYS: tuple[dict[str, str], ...] = ({}, {"NCCL_P2P_DISABLE": "1"})


@dataclass(frozen=True)
class Rank:
    """One process among `size`; `number` is also the index of its card, since all are on one machine."""

    number: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Only the first rank writes: events, checkpoints, result."""
        return self.number == 0

    @staticmethod
    def own(environment: Mapping[str, str] = os.environ) -> Rank:
        """This process's, as its launcher told it; the only one when none did."""
        return Rank(int(environment.get("LOCAL_RANK", "0")), int(environment.get("WORLD_SIZE", "1")))


@dataclass
class Ranks:
    """Running processes of one step. The exit code is one for all of them."""

    processes: list[subprocess.Popen[bytes]]
    stragglers: set[int] = field(default_factory=set)  # ranks that were killed here: their codes say nothing
    over_since: float | None = None

    @classmethod
    def start(
        cls, command: Sequence[str], size: int, environment: Mapping[str, str], log: IO[bytes], pass_fds: Sequence[int]
    ) -> Ranks:
        """`command` in `size` processes; `pass_fds` stay open in all of them."""
        places = [{}] if size == 1 else rank_environments(size, free_port(), environment)
        processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, **place},
                pass_fds=pass_fds,
            )
            for place in places
        ]
        return cls(processes)

    @property
    def pid(self) -> int:
        """Of the first rank."""
        return self.processes[0].pid

    def wait(self, timeout_s: float) -> int | None:
        """The verdict once every rank has ended, None after `timeout_s` without one; stragglers are killed here."""
        running = [process for process in self.processes if process.poll() is None]
        if running:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it works on
                running[0].wait(timeout_s)
        codes = [process.poll() for process in self.processes]
        if None not in codes:
            own = [code for rank, code in enumerate(codes) if rank not in self.stragglers] or codes
            return verdict([code for code in own if code is not None])
        if self.over_since is None and (codes[0] is not None or any(codes)):
            self.over_since = time.monotonic()
        if self.over_since is not None and time.monotonic() - self.over_since > GRACE_S:
            self.end()
        return None

    def finish(self, limit_s: float) -> int | None:
        """The verdict; None when it took longer, and they were killed."""
        deadline = time.monotonic() + limit_s
        while (code := self.wait(0.2)) is None and time.monotonic() < deadline:
            pass
        self.end()
        return code

    def end(self) -> None:
        """Kill what still runs."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                self.stragglers.add(rank)
                process.kill()


def conclude(code: Exit) -> Exit:
    """`code` again. A rank among several ends with it here and now.

    To free what torch holds of a process group can block for ever: a thread of the group waits for the interpreter,
    which waits for the thread. So the last words are flushed, and nothing is freed.
    """
    if Rank.own().size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def verdict(codes: Sequence[int]) -> int:
    """The exit code that says what happened: of the ranks', the one that comes last in this order."""
    return max(codes, key=lambda code: next(place for place, holds in enumerate(CAUSES) if holds(code)))


# When one rank fails the others fail in their next exchange with it, so what they say is no cause: RANK_LOST, or an
# abort by NCCL's watchdog. Their codes alone mean that the rank behind it hung, and was killed as a straggler.
CAUSES: tuple[Callable[[int], bool], ...] = (
    lambda code: code == Exit.OK,
    lambda code: code == Exit.RANK_LOST,
    lambda code: code == -signal.SIGABRT,
    lambda code: code == Exit.INTERNAL,
    lambda code: 0 < code != Exit.OUT_OF_MEMORY,
    lambda code: code < 0,
    lambda code: code == Exit.OUT_OF_MEMORY,
)


def rank_environments(size: int, port: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """What each of `size` ranks finds in its environment, beside what is there already."""
    threads = environment.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    common = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": threads,
    }
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # taken; there are others
                continue
            return port
    raise OSError("no free port for the ranks to meet at")
