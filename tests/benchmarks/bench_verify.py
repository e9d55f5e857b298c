"""Verification beside the disk, and beside too little memory. Prints one JSON line a reading.

    .venv/bin/python tests/benchmarks/bench_verify.py [--gb 4] [--rounds 3] [--folder DIR] [read] [behaviour]

`read`: L1 to L4 of a dense Q8_0, one pass from a cold cache, taking turns with a plain read of the same file; and the
hash alone. `behaviour`: the fenced child scores 8 prompts of 72 tokens, 24 positions each, on a model of some GB with
all the memory there is and under a limit of 4/8.5 of the file, which is what 4 GB are to an 8B model in Q8_0; needs a
memory cgroup that this user may write.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from daemon import platform
from daemon.artifacts import child, gguf, hashing, sizes, structure, tiny
from daemon.artifacts.blocks import padded
from daemon.artifacts.scan import Scan

# Where a group is made, by version of cgroups: the folder, the file of the limit, the file of the highest use.
CGROUPS = [
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
]
BLOCKS = 1 << 20  # of one random piece that the weights repeat, shifted


def make(path: Path, gigabytes: float) -> None:
    """A llama of this size in Q8_0 with random weights that llama.cpp runs: dense, every scale sound."""
    layers = max(1, round(gigabytes * 1e9 / 1.0625 / (4 * 2048 * 2048 + 3 * 2048 * 8192)))
    config = tiny.CONFIG | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }  # fmt: skip
    table = sizes.shapes(config)
    assert table is not None
    kinds = sizes.types(table, sizes.QUANTS["Q8_0"])
    metadata = tiny.metadata() | {
        "general.file_type": 7, "llama.block_count": layers, "llama.context_length": 4096,
        "llama.embedding_length": 2048, "llama.feed_forward_length": 8192, "llama.attention.head_count": 16,
        "llama.attention.head_count_kv": 16,
    }  # fmt: skip
    size = {name: math.prod(shape) // kinds[name].elements * kinds[name].size for name, shape in table.items()}
    chance = np.random.default_rng(7)
    piece = chance.integers(0, 256, (BLOCKS, 34), np.uint8)
    piece[:, :2] = np.full((BLOCKS, 1), 0.0003, "<f2").view("u1")
    flat = piece.reshape(-1)
    with open(path, "wb") as file:
        file.write(
            tiny.header(metadata, {name: (shape, kinds[name].name, size[name]) for name, shape in table.items()})
        )
        for name, shape in table.items():
            if len(shape) == 1:
                content = np.ones(shape[0], "<f4").tobytes()
            else:
                start = 34 * random.randrange(BLOCKS)
                content = np.resize(np.roll(flat, -start), size[name]).tobytes()
            file.write(content.ljust(padded(len(content), 32), b"\0"))
        file.flush()
        os.fsync(file.fileno())


def cold(path: Path) -> None:
    with open(path, "rb") as file:
        platform.drop_cache(file.fileno())


def plain(path: Path) -> None:
    buffer = memoryview(bytearray(4 << 20))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def levels(path: Path) -> None:
    parsed = gguf.read(path)
    assert structure.judge(parsed).passed
    scan = Scan(parsed)
    hashing.sha256(path, scan)
    assert scan.level().passed, scan.level().problem


READS: dict[str, Callable[[Path], object]] = {"plain": plain, "sha256": hashing.sha256, "L1 to L4": levels}


def reading(path: Path, rounds: int) -> None:
    taken: dict[str, list[float]] = {name: [] for name in READS}
    cpu: dict[str, list[float]] = {name: [] for name in READS}
    for _ in range(rounds):
        for name, read in READS.items():
            cold(path)
            began, used = time.monotonic(), time.process_time()
            read(path)
            taken[name].append(time.monotonic() - began)
            cpu[name].append(time.process_time() - used)
    size = path.stat().st_size
    best = statistics.median(taken["plain"])
    for name in READS:
        seconds = statistics.median(taken[name])
        print(json.dumps({
            "read": name, "bytes": size, "s": round(seconds, 2), "gb_s": round(size / seconds / 1e9, 3),
            "of_plain": round(best / seconds, 3), "cpu_s": round(statistics.median(cpu[name]), 2),
            "all_s": [round(s, 2) for s in taken[name]],
        }), flush=True)  # fmt: skip


def question(path: Path, greedy: int) -> child.Request:
    chance = random.Random(5)
    sets = (tuple(range(64)), tuple(range(64, 128)))
    asks = tuple(child.Ask(tuple(chance.randrange(256) for _ in range(72)), 48, (sets,) * 24) for _ in range(8))
    return child.Request(str(path), ("ab",), (tiny.END,), asks, (97, 98), greedy, child.threads())


def behaviour(path: Path, limit: int | None, greedy: int) -> None:
    """In a process of its own, so that the limit is its alone; `limit` in bytes of memory, page cache included."""
    about = {"behaviour": limit or "no limit", "bytes": path.stat().st_size, "greedy": greedy}
    if limit is None:
        print(json.dumps(about | asked(path, "", greedy)), flush=True)
        return
    folder, limit_file, peak_file = next((each for each in CGROUPS if each[0].is_dir()), CGROUPS[-1])
    group = folder / f"homeport-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit_file).write_text(str(limit))
    except OSError as error:
        print(json.dumps(about | {"skipped": str(error)}))
        return
    try:
        told = asked(path, str(group), greedy)
        print(json.dumps(about | {"peak": int((group / peak_file).read_text())} | told), flush=True)
    finally:
        group.rmdir()


def asked(path: Path, group: str, greedy: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--folder", str(path), "--inside", group, "--greedy", str(greedy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-300:]}


def inside(path: Path, group: str, greedy: int) -> None:
    if group:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    cold(path)
    began = time.monotonic()
    reply = asyncio.run(child.ask(question(path, greedy), path.stat().st_size))
    print(json.dumps({
        "s": round(time.monotonic() - began, 1), "score_s": round(reply.score_s, 1), "fence": reply.fence,
        "threads": child.threads(), "digest": hash(tuple(map(dataclasses.astuple, reply.prompts[0]))) & 0xFFFF,
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["read", "behaviour"])
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--inside")
    parser.add_argument("--greedy", type=int, default=0)
    args: Any = parser.parse_args()
    if args.inside is not None:
        inside(args.folder, args.inside, args.greedy)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "model.gguf"
        make(path, args.gb)
        if "read" in args.what:
            reading(path, args.rounds)
        if "behaviour" in args.what:
            size = path.stat().st_size
            behaviour(path, round(size * 4 / 8.5), 0)
            behaviour(path, None, 0)
            behaviour(path, None, 48)


if __name__ == "__main__":
    main()
