"""A real SSH server over one folder, in a process of its own: what a rented box is to the tests of `daemon.box`.

`python ssh_server.py HOME HOST_KEY AUTHORIZED_KEYS [--noise TEXT]` prints its port and serves until
its stdin ends. Commands run in HOME by bash and, as with sshd, outlive their connection (not this server); SFTP's
relative paths start there too. `--noise` is printed before every command, as a careless .bashrc would.
On SIGHUP the newest connection is closed in order, its command still running.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import asyncssh


async def run_command(
    noise: str, running: set[asyncio.subprocess.Process], process: asyncssh.SSHServerProcess[bytes]
) -> None:
    process.stdout.write(noise.encode())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, process.channel.get_connection().close)
    child = await asyncio.create_subprocess_exec(
        "/bin/bash",
        "-c",
        process.command or "",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    running.add(child)
    await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
    code = await child.wait()
    running.remove(child)
    await process.stdout.drain()
    process.exit(code)


async def serve(args: argparse.Namespace) -> None:
    running: set[asyncio.subprocess.Process] = set()
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[str(args.host_key)],
        authorized_client_keys=str(args.authorized_keys),
        process_factory=partial(run_command, args.noise, running),
        sftp_factory=True,
        encoding=None,
        line_editor=False,
        compression_algs=None,
    )
    print(server.get_port(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # the test closes it, or died
    for child in running:
        os.killpg(child.pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("host_key", type=Path)
    parser.add_argument("authorized_keys", type=Path)
    parser.add_argument("--noise", default="")
    args = parser.parse_args()
    os.environ["HOME"] = str(args.home)
    os.chdir(args.home)
    asyncio.run(serve(args))


if __name__ == "__main__":
    main()
