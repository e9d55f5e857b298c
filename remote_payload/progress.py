"""events.jsonl: what happened, one JSON object a line, for whoever reads it by byte offset.

Two processes write it at once, the chain and its running stage, so a line takes its number under a file lock.
A line is not synced to disk: after a power cut the training repeats from its checkpoint, and so do the events.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL = 64 << 10  # bytes; more than any one line
LONGEST = 4 << 10  # characters of one text in a line; an exception may list every tensor of a model


@dataclass(frozen=True)
class Events:
    """Appends to one file on behalf of one stage and nonce."""

    path: Path
    stage: str | None = None
    nonce: str | None = None

    def emit(self, kind: str, **fields: Any) -> None:
        """Append one line. A half-written last line, left by a kill, is cut off first."""
        line = {"v": 1, "seq": 0, "t": round(time.time(), 3), "stage": self.stage, "nonce": self.nonce, "kind": kind}
        line.update({name: _plain(value) for name, value in fields.items()})
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            tail = os.pread(fd, TAIL, max(0, size - TAIL))
            whole = tail[: tail.rfind(b"\n") + 1]
            end = size - len(tail) + len(whole)
            if end < size:
                os.ftruncate(fd, end)
            last = next(filter(None, map(_parsed, reversed(whole.splitlines()))), {"seq": 0})
            line["seq"] = last["seq"] + 1
            os.pwrite(fd, json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n", end)
        finally:
            os.close(fd)


def read_from(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines after byte `offset`, and the offset to go on from. What a power cut left of others is no line."""
    try:
        with open(path, "rb") as f:
            f.seek(offset)
            text = f.read()
    except FileNotFoundError:  # nothing was written yet
        return [], offset
    end = text.rfind(b"\n") + 1
    return list(filter(None, map(_parsed, text[:end].splitlines()))), offset + end


def _parsed(text: bytes) -> dict[str, Any] | None:
    """The line as an object; None where the disk kept only a part of it, or zeros in its place."""
    try:
        line = json.loads(text)
    except ValueError:  # as promised
        return None
    return line if isinstance(line, dict) and line.keys() >= {"seq", "kind", "nonce"} else None


def _plain(value: Any) -> Any:
    """JSON knows no NaN or infinity; they travel as words, so that a diverged loss is seen and not lost."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value[:LONGEST] if isinstance(value, str) else value
