"""Sizes and hashes of the files that a pattern means, whole and by chunks of 8 MiB; one JSON line a file.

Sent as text to a machine that has nothing of ours: `python3 -c SOURCE PATTERN`. Standard library, Python 3.8 on. Links
are not followed; a file that changes while it is read says so.
"""

import glob
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHUNK = 8 << 20


def described(path):
    """What a manifest says about one file, and `whole`: whether it stayed the same meanwhile."""
    whole, chunks, size = hashlib.sha256(), [], 0
    with open(path, "rb") as file, ThreadPoolExecutor(1) as beside:  # hashlib releases the interpreter
        before = os.fstat(file.fileno())
        for block in iter(lambda: file.read(CHUNK), b""):
            chunk = beside.submit(hashlib.sha256, block)
            whole.update(block)
            chunks.append(chunk.result().hexdigest())
            size += len(block)
        after = os.fstat(file.fileno())
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and size == after.st_size
    return {"path": path, "size": size, "sha256": whole.hexdigest(), "chunks": chunks, "whole": same}


def main(pattern):
    for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True)):  # noqa: PTH207 - takes an absolute pattern
        path = Path(name)
        if path.is_file() and not path.is_symlink():
            print(json.dumps(described(str(path.resolve()))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
