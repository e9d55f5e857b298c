"""Downloads beside scp, rsync and lftp over bad lines. Prints one JSON line for each line and tool.

    .venv/bin/python tests/benchmarks/bench_download.py [--mib 1024] [--rounds 3] [CASE ...]

The server is OpenSSH's (`apt-get install openssh-server rsync lftp`, or HOMEPORT_SSHD with the path of an sshd; run as
root, since sshd is), the file lies in the page cache. Lines are made by a proxy that knows round trips, windows and
cuts, run as `python $HOMEPORT_WAN_PROXY --target HOST:PORT --rtt-ms 150 ...`; without that variable only `loopback`.
Tools take turns, medians are told. Our time runs from the first dial to the file under its own name: synced, read
back from the disk and hashed, which the others do not do. CPU and memory are the client's; a tool that
is not installed is left out. `kill` ends the download with SIGKILL and tells what a second run asked for again.
`rebuilt` is `home` where the whole file was built here before (`deliver: rebuild`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from boxes import DurableFile

from daemon.box.address import BoxAddress
from daemon.box.box import Box
from daemon.box.keys import own_key
from daemon.box.pace import Pace
from daemon.box.part import part_of
from remote_payload import contract
from remote_payload.contract import CHUNK_SIZE, ArtifactFile, Manifest, Role
from remote_payload.hashes import digest

MODEL = "run/out/model.gguf"
LONG = ["--rtt-ms=150", "--rate-total=125e6"]
HOME = ["--rtt-ms=30", "--rate-total=12.5e6"]
LINES: dict[str, list[str]] = {
    "loopback": [],
    "long": LONG,
    "slow-start": [*LONG, "--slow-start", "--window=6e6"],
    "capped": ["--rtt-ms=150", "--rate-conn=15e6"],
    "cuts": LONG,
    "home": HOME,
    "rebuilt": HOME,
    "limited": HOME,
    "kill": LONG,
}
CUT_EVERY_S = 5.0
LIMIT_MBPS = 60.0  # of the 100 of the line, in `limited`
CIPHER = "aes128-gcm@openssh.com"


@dataclasses.dataclass
class Server:
    """An sshd over `folder`, and the manifest of the one file there."""

    folder: Path
    port: int
    key: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        return self.manifest.files[0].size


@contextlib.contextmanager
def server(folder: Path, mib: int) -> Iterator[Server]:
    sshd = os.environ.get("HOMEPORT_SSHD") or shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        sys.exit("no sshd: apt-get install openssh-server, or set HOMEPORT_SSHD")
    sftp = Path(sshd).parents[1] / "lib/openssh/sftp-server"
    (folder / "authorized").write_text(own_key(folder / "id") + "\n")
    own_key(folder / "host")
    port = free_port()
    options = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "StrictModes": "no", "UsePAM": "no",
        "AuthorizedKeysFile": folder / "authorized", "PidFile": "none",
        "Subsystem": f"sftp {sftp if sftp.exists() else '/usr/lib/openssh/sftp-server'}",
    }  # fmt: skip
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([sshd, "-D", "-f", folder / "config", "-E", folder / "log"])
    try:
        await_port(port)
        yield Server(folder, port, folder / "id", make_model(folder, mib << 20))
    finally:
        process.terminate()
        process.wait()


def make_model(folder: Path, size: int) -> Manifest:
    path = folder / MODEL
    path.parent.mkdir(parents=True)
    block = random.Random(1).randbytes(CHUNK_SIZE)
    with open(path, "wb") as file:
        for i in range(size // CHUNK_SIZE):
            file.write(i.to_bytes(8, "big") + block[8:])
    found = digest(path)
    file = ArtifactFile(MODEL, Role.GGUF, found.size, found.sha256, found.chunks)
    manifest = Manifest("job", 1, "nonce", 0.0, CHUNK_SIZE, [file])
    (folder / "manifest.json").write_text(contract.dump(manifest))
    return manifest


@contextlib.contextmanager
def line(name: str, target: int, told: dict[str, Any]) -> Iterator[int]:
    """The port at which the server is reached over this line; what passed downwards is left in `told`."""
    if name == "loopback":
        yield target
        return
    command = [sys.executable, os.environ["HOMEPORT_WAN_PROXY"], f"--target=127.0.0.1:{target}", *LINES[name]]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert proxy.stdout
    cutter = None
    try:
        port = json.loads(proxy.stdout.readline())["listening"]
        if name == "cuts":
            cutter = subprocess.Popen(["sh", "-c", f"while sleep {CUT_EVERY_S}; do kill -USR2 {proxy.pid}; done"])
        yield port
    finally:
        if cutter:
            cutter.kill()
            cutter.wait()
        proxy.terminate()
        told["wire"] = json.loads(proxy.stdout.read().splitlines()[-1])["down"]
        proxy.wait()


def ours(there: Server, port: int, to: Path, limit: float | None = None, kill_at: int | None = None) -> dict[str, Any]:
    """In a process of its own; with `kill_at` it is killed once that many bytes are recorded as durable."""
    to.mkdir(exist_ok=True)
    arguments = ["--one", str(there.folder), str(port), str(to), str(limit or 0)]
    child = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    if kill_at is None:
        printed, _ = child.communicate()
        return dict(json.loads(printed))
    record = to / "durable.json"
    while not record.exists() or durable_bytes(record) < kill_at:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    return {"durable": durable_bytes(record)}


def durable_bytes(record: Path) -> int:
    return int(json.loads(record.read_text()).get(MODEL) or "0", 16).bit_count() * CHUNK_SIZE


async def one(folder: Path, port: int, to: Path, limit: float) -> None:
    """The child: download, and print what it took."""
    manifest = contract.load(Manifest, (folder / "manifest.json").read_text())
    host_key = " ".join(own_key(folder / "host").split()[:2])
    box = Box(BoxAddress(1, (("127.0.0.1", port),), host_key, "", str(folder), sys.executable), folder / "id")
    resent = 0

    def note(progress: Any) -> None:
        nonlocal resent
        resent = progress.resent

    before, began = cpu(), time.perf_counter()
    await box.download(manifest, to, DurableFile(to / "durable.json"), note, Pace.on_line(limit or None))
    took, used = time.perf_counter() - began, cpu() - before
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"s": took, "cpu": used, "rss_mib": round(rss), "resent": resent}))
    await box.aclose()


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tools(there: Server, port: int, to: Path) -> dict[str, list[str]]:
    options = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={to}.hosts", "-i"]
    options += [str(there.key), "-c", CIPHER, "-o", "IdentityAgent=none", "-o", "LogLevel=ERROR"]
    source = f"root@127.0.0.1:{there.folder}/{MODEL}"
    ssh = " ".join(["ssh", "-p", str(port), *options])
    remote = f"sftp://root:x@127.0.0.1:{port}/{there.folder}/{MODEL}"
    lftp = f"set sftp:connect-program '{ssh} -a -x'; set sftp:max-packets-in-flight 64; set net:max-retries 9;"
    return {
        "scp": ["scp", "-q", "-B", "-P", str(port), *options, source, str(to)],
        "rsync": [
            "rsync",
            "--partial",
            "--inplace",
            f"--rsync-path={shutil.which('rsync')}",
            "-e",
            ssh,
            source,
            str(to),
        ],
        "lftp": ["lftp", "-c", f"{lftp} pget -n 8 {remote} -o {to}"],
    }


def theirs(command: list[str], there: Server, to: Path) -> dict[str, Any]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code or digest(to).sha256 != there.manifest.files[0].sha256:
        return {"failed": code}
    return {"s": took, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure(case: str, there: Server, scratch: Path, only: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One round of every tool."""
    to = scratch / "to"
    told: dict[str, Any] = {}
    if case == "kill":
        with line(case, there.port, told) as port:
            stopped = ours(there, port, to, kill_at=random.Random().randrange(there.size // 4, there.size * 3 // 4))
        first = told["wire"]
        with line(case, there.port, told) as port:
            found = ours(there, port, to)
        again = first + told["wire"] - there.size
        yield "homeport", {**found, "durable_at_kill": stopped["durable"], "again": again}
        shutil.rmtree(to)
        return
    if "homeport" in only:
        with line(case, there.port, told) as port:
            if case == "limited":
                yield from beside(there, port, to)
                return
            if case == "rebuilt":
                to.mkdir()
                shutil.copyfile(there.folder / MODEL, part_of(to / PurePosixPath(MODEL).name))
            found = ours(there, port, to)
        yield "homeport", {**found, **told}
        shutil.rmtree(to)
    for tool in only:
        with line(case, there.port, told) as port:
            command = tools(there, port, to).get(tool, ["-"])
            found = theirs(command, there, to) if shutil.which(command[0]) else None
        if found:
            yield tool, {**found, **told}
        to.unlink(missing_ok=True)


def beside(there: Server, port: int, to: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Our download under `limits.line`, and what another one gets of the line while both run."""
    aside = to.with_name("rest")
    rest = subprocess.Popen(tools(there, port, aside)["scp"])
    began = time.perf_counter()
    found = ours(there, port, to, LIMIT_MBPS)
    if rest.poll() is not None:
        sys.exit("the other download ended first: ask for more --mib")
    took = time.perf_counter() - began
    rest.kill()
    rest.wait()
    yield "homeport", {**found, "other_mb_s": aside.stat().st_size / 1e6 / took}
    aside.unlink()
    shutil.rmtree(to)


def main(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch, server(Path(scratch), args.mib) as there:
        for case in args.cases:
            rounds: dict[str, list[dict[str, Any]]] = {}
            for _ in range(args.rounds):
                for tool, found in measure(case, there, Path(scratch), args.tools):
                    rounds.setdefault(tool, []).append(found)
            for tool, found in rounds.items():
                print(json.dumps({"case": case, "tool": tool, **summary(found, there.size)}), flush=True)


def summary(rounds: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Medians; MB/s and CPU-seconds by 10^9 and 10^6 bytes of the file, bytes on the wire as a multiple of it."""
    whole = [found for found in rounds if "s" in found]
    told: dict[str, Any] = {"rounds": len(whole), "failed": len(rounds) - len(whole)}
    if whole:
        speeds = [size / 1e6 / found["s"] for found in whole]
        told["mb_s"] = round(statistics.median(speeds), 1)
        told["from_to"] = [round(min(speeds), 1), round(max(speeds), 1)]
        told["cpu_s_gb"] = round(statistics.median(found["cpu"] for found in whole) / (size / 1e9), 2)
    for key in ("wire", "again", "durable_at_kill", "other_mb_s", "rss_mib", "resent"):
        if values := [found[key] for found in rounds if key in found]:
            told[key] = round(statistics.median(values) / (size if key == "wire" else 1), 4)
    return told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    sys.exit("sshd did not start; its log is beside its configuration")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        folder, port, to, limit = sys.argv[2:]
        asyncio.run(one(Path(folder), int(port), Path(to), float(limit)))
    else:
        known = list(LINES) if "HOMEPORT_WAN_PROXY" in os.environ else ["loopback"]
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--mib", type=int, default=1024)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--scratch", type=Path, help="folder for all files; /dev/shm leaves the disk out")
        parser.add_argument("--tools", nargs="+", default=["homeport", "scp", "rsync", "lftp"])
        parser.add_argument(
            "cases",
            nargs="*",
            default=known,
        )
        main(parser.parse_args())
