"""A market and its rented machines in one process, for what many jobs cost the daemon: nothing is trained here.

    python crowd.py FOLDER COUNT

Each machine is a folder with the runner's files, in which a step is told every few seconds. All answer SSH at one port,
as a box that trains would answer the one command of a daemon that watches, `run status`. The market lists them, page by
page, and counts what it is asked. The first line of stdout is JSON: url, port, host_key.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import asyncssh

from remote_payload import contract
from remote_payload.contract import Phase, Stage, Status

FIRST = 1_000  # instance id of the first machine
PAGE = 25  # rows, the market's most
ASKED = "/asked"  # our own page: how often each path was asked for
STEP_EVERY_S = 10.0
FRAME = re.compile(rb"printf '\\n%s begin\\n' (\S+)\n\(\ncd (\S+) ")
STEP = {"kind": "step", "stage": "SFT", "total": 1000, "loss": 1.5, "lr": 1e-4, "tokens": 9, "tok_s": 8.0}
FILES = {"log_size": contract.LOG_FILE, "events_size": contract.EVENTS_FILE}


def job_name(number: int) -> str:
    return f"j{number:05}"


def label(number: int) -> str:
    return f"hp-bench-{job_name(number)}-n"


def listed(number: int, port: int) -> dict[str, Any]:
    """The market's row of one machine."""
    return {
        "id": FIRST + number, "label": label(number), "actual_status": "running", "intended_status": "running",
        "cur_state": "running", "machine_id": number, "host_id": 1, "gpu_name": "H100 SXM", "num_gpus": 1,
        "dph_total": 2.0, "storage_total_cost": 0.02, "public_ipaddr": "127.0.0.1", "gpu_util": 97.0,
        "ports": {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}]},
    }  # fmt: skip


class Market(BaseHTTPRequestHandler):
    """Account and list; nothing else is asked for while jobs train."""

    protocol_version = "HTTP/1.1"
    rows: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == ASKED:
            reply: dict[str, Any] = dict(self.asked)
        elif url.path.startswith("/api/v0/users"):
            reply = {"id": 1, "credit": 100_000.0}
        else:
            first = int(parse_qs(url.query).get("after_token", ["0"])[0])
            after = first + PAGE
            token = str(after) if after < len(self.rows) else None
            reply = {"success": True, "instances": self.rows[first:after], "next_token": token}
        if url.path != ASKED:
            self.asked[url.path] += 1
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Door(asyncssh.SSHServer):
    """Lets everybody in: there is nothing behind it."""

    def begin_auth(self, username: str) -> bool:
        return False


async def answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """What the runner says of the machine whose folder the command enters."""
    frame = FRAME.search(await process.stdin.read())
    if frame is None:
        process.exit(1)
        return
    mark, root = frame[1].decode(), Path(frame[2].decode())
    status = Status(root.name, 1, Phase.RUNNING, Stage.SFT, "n", time.time(), "boot", 1, step=1, total_steps=1000)
    sizes = {name: (root / contract.RUN_DIR / file).stat().st_size for name, file in FILES.items()}
    said = {"boot_id": "boot", "alive": True, "status": json.loads(contract.dump(status)), **sizes}
    process.stdout.write(f"\n{mark} begin\n{json.dumps(said)}\n{mark} end 0\n".encode())
    process.exit(0)


def train(runs: Sequence[Path]) -> None:
    """A step on every machine now and then, for ever."""
    for step in itertools.count(1):
        time.sleep(STEP_EVERY_S)
        line = json.dumps({**STEP, "step": step, "t": time.time(), "nonce": "n", "v": 1, "seq": step}) + "\n"
        for run in runs:
            with open(run / contract.EVENTS_FILE, "a", encoding="utf-8") as events:
                events.write(line)


async def main(folder: Path, count: int) -> None:
    runs = [folder / job_name(number) / contract.RUN_DIR for number in range(count)]
    for run in runs:
        run.mkdir(parents=True)
        for file in FILES.values():
            (run / file).touch()
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Door, server_host_keys=[key], process_factory=answer,
        sftp_factory=asyncssh.SFTPServer, encoding=None, backlog=count,
    )  # fmt: skip
    port = server.sockets[0].getsockname()[1]
    Market.rows = [listed(number, port) for number in range(count)]
    market = ThreadingHTTPServer(("127.0.0.1", 0), Market)
    threading.Thread(target=market.serve_forever, daemon=True).start()
    host_key = " ".join(key.export_public_key().decode().split()[:2])
    print(json.dumps({"url": f"http://127.0.0.1:{market.server_port}", "port": port, "host_key": host_key}), flush=True)
    await asyncio.to_thread(train, runs)


if __name__ == "__main__":
    asyncssh.set_log_level("ERROR")
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
