"""sha256 of files, whole and by chunk. `python -m remote_payload.hashes PATH...` prints one JSON line a path.

Standard library only: the daemon calls it before the box has anything else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from remote_payload.contract import CHUNK_SIZE, Output


@dataclass(frozen=True)
class Digest:
    """A file's size in bytes, its sha256, and the sha256 of every chunk, the last of which may be shorter."""

    size: int
    sha256: str
    chunks: list[str]


def digest(path: Path, chunk_size: int = CHUNK_SIZE) -> Digest:
    """Read `path` once. hashlib releases the interpreter, so the chunk hash runs beside the whole one."""
    whole, size, chunks = hashlib.sha256(), 0, []
    with open(path, "rb") as f, ThreadPoolExecutor(1) as beside:
        while block := f.read(chunk_size):
            chunk = beside.submit(_hex, block)
            whole.update(block)
            size += len(block)
            chunks.append(chunk.result())
    return Digest(size, whole.hexdigest(), chunks)


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def output(root: Path, path: str) -> Output:
    """`path` (relative to `root`) with its size and hash."""
    return Output(path, (root / path).stat().st_size, sha256(root / path))


def _hex(block: bytes) -> str:
    return hashlib.sha256(block).hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hashes")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--chunks", action="store_true", help="the hash of each chunk, instead of the whole file's")
    parser.add_argument("paths", nargs="+")
    args = parser.parse_args(argv)
    for path in args.paths:
        file = args.root / path
        if file.exists() and stat.S_ISREG(file.stat().st_mode):
            found = {"chunks": digest(file).chunks} if args.chunks else asdict(output(args.root, path))
            print(json.dumps({"path": path, **found}), flush=True)
        else:
            print(json.dumps({"path": path, "missing": True}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
