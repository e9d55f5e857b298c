"""A box python that has its libraries imported already: `warm_python.py SOCKET` forks one process per command.

Importing torch, transformers and trl takes seconds, once for every command of every test. The commands themselves are
the real ones: a forked child changes to the box's root, takes its environment and runs the module as __main__.
"""

import contextlib
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

import datasets  # noqa: F401
import peft  # noqa: F401
import torch
import transformers  # noqa: F401
import trl  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  # transformers imports these on first use
from trl import DPOTrainer, SFTTrainer  # noqa: F401  # and so does trl


def serve(path: str) -> None:
    torch.set_num_threads(1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(16)
        Path(f"{path}.new").rename(path)  # there once it listens
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                attend(connection)
                os._exit(0)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def attend(connection: socket.socket) -> None:
    """Read one command with its two output files, run it in a child, tell its PID and then how it ended."""
    message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    command = json.loads(message)
    pid = os.fork()
    if pid == 0:
        connection.close()
        become(command["module"], command["arguments"], command["root"], command["environment"], fds)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):  # the test may be over
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def become(module: str, arguments: list[str], root: str, environment: dict[str, str], fds: list[int]) -> None:
    os.dup2(fds[0], 1)
    os.dup2(fds[1], 2)
    torch.set_num_threads(1)  # the fork spoiled torch's pool, and two threads that first replace it at once abort
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [root, environment["PYTHONPATH"]]  # as python -m does
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001  # the child must end here, not in the parent's loop
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
