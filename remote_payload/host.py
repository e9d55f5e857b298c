"""What the host is worth beside its cards: room on the disk, main memory, and how fast the base model comes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from remote_payload import contract
from remote_payload.check import Check
from remote_payload.contract import Needs

# What a container may use of the machine's memory, where it is limited (cgroup 2, cgroup 1).
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
HUB = "https://huggingface.co"
REFUSALS = frozenset({401, 403, 404})
BLOCK = 1 << 20
LINE_S = 4.0  # of looking at the line
PATIENCE_S = 10.0  # for one answer of the hub
# The whole model at the rate of one stream, which several at once exceed by far. Longer than this the line is broken.
LONGEST_S = 3600.0


def disk_check(root: Path, needed: int) -> Check:
    """The root takes files and gives them back, and what the job will write fits beside what it has written."""
    try:
        with tempfile.NamedTemporaryFile(dir=root) as f:
            f.write(os.urandom(1 << 20))
            f.flush()
            os.fsync(f.fileno())
        room = shutil.disk_usage(root).free + sum(map(size_of, (contract.MODEL_DIR, contract.RUN_DIR), [root] * 2))
    except OSError as error:
        return Check("disk", False, str(error))
    return Check("disk", room >= needed, f"{gb(room)} for the job, which needs {gb(needed)}")


def size_of(name: str, root: Path) -> int:
    """Bytes in a folder of the root; 0 when it is not there."""
    return sum(file.lstat().st_size for file in (root / name).rglob("*") if file.is_file())


def memory_check(needed: int) -> Check:
    there = memory()
    return Check("memory", there >= needed, f"{gb(there)}, the job needs {gb(needed)}")


def memory() -> int:
    """Bytes of main memory that this container may use."""
    limits = [int(text) for file in LIMITS if file.exists() and (text := file.read_text().strip()).isdigit()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def line_check(needs: Needs) -> Check:
    """How fast the hub's largest file of the model begins to come. A hub that refuses is no fault of the host."""
    model = needs.model
    if model is None or not model.repo:
        return Check("line", True, "the base model does not come from a hub")
    revision = model.revision or "main"
    try:
        with ask(f"api/models/{model.repo}/tree/{revision}") as reply:
            files = {file["path"]: int(file.get("size", 0)) for file in json.load(reply)}
        with ask(f"{model.repo}/resolve/{revision}/{max(files, key=files.__getitem__)}") as reply:
            rate = measured_rate(reply)
    except urllib.error.HTTPError as refusal:
        if refusal.code in REFUSALS:
            return Check("line", True, f"the hub refuses {model.repo} with {refusal.code}, as prepare will say")
        return Check("line", False, f"the hub answers {refusal.code}")
    except (OSError, ValueError) as error:
        return Check("line", False, f"the hub cannot be reached: {error}")
    took = sum(size for name, size in files.items() if name.endswith(".safetensors")) / max(rate, 1.0)
    return Check("line", took <= LONGEST_S, f"{rate / 1e6:.1f} MB/s; the base model would take {took / 60:.1f} minutes")


def ask(path: str) -> Any:
    """The hub's answer, open to be read. Raises OSError, as HTTPError where it has a code."""
    request = urllib.request.Request(f"{os.environ.get('HF_ENDPOINT', HUB).rstrip('/')}/{path}")  # noqa: S310
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # the hub's own, not for its storage
    return urllib.request.urlopen(request, timeout=PATIENCE_S)  # noqa: S310  # whatever scheme the hub has


def measured_rate(reply: Any) -> float:
    """Bytes a second of one stream, from its headers on."""
    began, received = time.monotonic(), 0
    while time.monotonic() - began < LINE_S and (block := reply.read1(BLOCK)):
        received += len(block)
    return received / max(time.monotonic() - began, 1e-6)


def gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
