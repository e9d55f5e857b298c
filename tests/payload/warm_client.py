"""Asks the warm python (warm_python.py) to run a module. As a script it stands for the box's python in the chain:

warm_client.py SOCKET -m MODULE ARGUMENT...
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PATIENCE_S = 300.0  # beside other work


class Running:
    """A module running as a forked child of the warm python; it can be killed like any process."""

    def __init__(
        self,
        warm: str,
        module: str,
        arguments: Sequence[str],
        root: Path,
        environment: dict[str, str],
        out: int,
        err: int,
    ) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE_S)
        connection.connect(warm)
        command = {"module": module, "arguments": arguments, "root": str(root), "environment": environment}
        socket.send_fds(connection, [json.dumps(command).encode()], [out, err])
        self.replies = connection.makefile()
        connection.close()  # the file above keeps it open
        self.pid = int(self.replies.readline())

    def wait(self) -> int:
        """How it ended; negative when a signal ended it."""
        with self.replies:
            return int(self.replies.readline())


def begin(warm: Path, module: str, arguments: Sequence[str], root: Path, environment: dict[str, str]) -> Running:
    """A module running in `root`, its output in the files stdout and stderr there."""
    with open(root / "stdout", "w") as out, open(root / "stderr", "w") as err:
        return Running(str(warm), module, arguments, root, environment, out.fileno(), err.fileno())


def completed(running: Running, root: Path) -> subprocess.CompletedProcess[str]:
    """What `begin` began in `root`, at its end."""
    code = running.wait()
    return subprocess.CompletedProcess([], code, *((root / name).read_text() for name in ("stdout", "stderr")))


if __name__ == "__main__":
    warm, _, module, *arguments = sys.argv[1:]
    sys.exit(Running(warm, module, arguments, Path.cwd(), dict(os.environ), 1, 2).wait())
