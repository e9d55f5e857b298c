"""Download speed beside scp's, same file, same loopback server, same run. Prints one JSON line.

`.venv/bin/python tests/benchmarks/bench_download.py [--mib 1024]`. The server is asyncssh's, so both clients meet the
same sender; on two cores client and server share them, which is what bounds either. The download also hashes every
chunk, syncs, re-reads and hashes the whole file; scp does none of that.
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from boxes import DurableFile, LoopbackBox, loopback_box, manifest_of

from daemon.box.box import Box
from remote_payload.contract import CHUNK_SIZE, Manifest

MODEL = "run/out/model.gguf"
ROUNDS = 3


def make_model(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True)
    block = random.Random(1).randbytes(CHUNK_SIZE)
    with open(path, "wb") as file:
        for i in range(size // CHUNK_SIZE):
            file.write(i.to_bytes(8, "big") + block[8:])


async def download(there: LoopbackBox, manifest: Manifest, to: Path) -> float:
    box = Box(there.address(), there.key)
    await box.prove()
    began = time.perf_counter()
    await box.download(manifest, to, DurableFile(to.with_suffix(".json")), lambda progress: None)
    seconds = time.perf_counter() - began
    await box.aclose()
    return seconds


async def scp(there: LoopbackBox, to: Path) -> float:
    options = ["-q", "-B", "-F", "none", "-i", str(there.key), "-P", str(there.port), "-c", "aes128-gcm@openssh.com"]
    trust = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={to}.hosts", "-o", "IdentityAgent=none"]
    began = time.perf_counter()
    source = f"root@127.0.0.1:{there.root}/{MODEL}"
    process = await asyncio.create_subprocess_exec("scp", *options, *trust, source, str(to))
    await process.wait()  # its exit code says nothing: against this server scp ends with 1 after the last byte
    seconds = time.perf_counter() - began
    if not filecmp.cmp(to, there.root / MODEL, shallow=False):
        raise RuntimeError("scp did not bring the file")
    return seconds


async def main(mib: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        async with loopback_box(folder / "there") as there:
            make_model(there.root / MODEL, mib << 20)
            manifest = manifest_of(there.root, [MODEL], CHUNK_SIZE)
            ours, theirs = [], []
            for i in range(ROUNDS):
                theirs.append(await scp(there, folder / f"scp-{i}.gguf"))
                ours.append(await download(there, manifest, folder / f"download-{i}"))
        size = mib * (1 << 20) / 1e6
        speeds = {
            name: round(size / statistics.median(times), 1) for name, times in (("download", ours), ("scp", theirs))
        }
        print(json.dumps({"mb": round(size), "rounds": ROUNDS, "mb_s": speeds}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=512)
    asyncio.run(main(parser.parse_args().mib))
