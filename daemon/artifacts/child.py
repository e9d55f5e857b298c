"""Start `llama_child.py` fenced (fence.py), ask it one request, and believe no more of its answer than its shape.

Beside the fence the child has a scrubbed environment (no key, no agent, no home) and a time limit.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from daemon.artifacts.fence import fence

SCRIPT = Path(__file__).with_name("llama_child.py")
BESIDE_MODEL = 3 << 30  # bytes of address space for Python, numpy, context and logits
START_S = 120.0  # wall time for imports and a cold disk
SECONDS_PER_GB = 240.0  # wall time per 1e9 bytes of model; a slow single core needs a quarter of it
MAX_REPLY = 64 << 20  # bytes


class ChildFailed(Exception):
    """The child ended badly, took too long, or answered something else than it was asked for."""


@dataclass(frozen=True)
class Ask:
    """Score ids[start:] of one prompt. `wanted[i]` are sets of token ids whose log probabilities are asked at i."""

    ids: tuple[int, ...]
    start: int
    wanted: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Request:
    """Texts to split into tokens, tokens that should end an answer, prompts to score, one prompt to continue."""

    gguf: str
    texts: tuple[str, ...]
    ends: tuple[int, ...]
    prompts: tuple[Ask, ...]
    greedy_ids: tuple[int, ...]
    greedy_tokens: int  # 0: none
    threads: int


@dataclass(frozen=True)
class Scores:
    """Log probabilities of one wanted set, in its order, and of all other tokens together."""

    logs: tuple[float, ...]
    tail: float


@dataclass(frozen=True)
class Position:
    """The model's likeliest token and the scores of each wanted set; None instead where logits are not all numbers."""

    choice: int
    scores: tuple[Scores, ...]


@dataclass(frozen=True)
class Reply:
    vocabulary: int
    tokens: tuple[tuple[int, ...], ...]
    stops: tuple[bool, ...]  # for each of `ends`: the file marks it as one
    prompts: tuple[tuple[Position | None, ...], ...]
    greedy_text: str
    greedy_ended: bool
    load_s: float
    score_s: float
    fence: tuple[str, ...] = ()  # which parts of the fence stood, by our own word


def missing() -> str:
    """Which package the child needs and does not find here; '' when none is missing. Imports neither."""
    from importlib.util import find_spec

    return next((name for name in ("numpy", "llama_cpp") if find_spec(name) is None), "")


def threads() -> int:
    """One fewer than the free cores: llama.cpp's threads spin while they wait, so one busy core stalls them all."""
    cores = os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(cores - busy) - 1)


async def ask(request: Request, size: int) -> Reply:
    """The answer about a GGUF of `size` bytes. Raises ChildFailed; never leaves a child behind."""
    limit_s = START_S + SECONDS_PER_GB * size / 1e9
    readable = (Path(request.gguf), SCRIPT)
    with fence(size + BESIDE_MODEL, math.ceil(limit_s * request.threads) + 1, readable) as fenced:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(SCRIPT),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            preexec_fn=fenced.close_behind,
        )
        standing = fenced.standing()
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await process.communicate(json.dumps(asdict(request)).encode())
    except TimeoutError as error:
        raise ChildFailed(f"no answer within {limit_s:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ChildFailed(f"ended with code {process.returncode}: {_end_of(errors)}")
    return replace(_parsed(request, output), fence=standing)


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
    return kept | {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _end_of(errors: bytes) -> str:
    """The last lines of standard error as one printable line."""
    lines = errors[-4096:].decode(errors="replace").strip().splitlines()[-3:] or ["nothing on standard error"]
    return "".join(c for c in "; ".join(lines) if c.isprintable())[-500:]


def _parsed(request: Request, output: bytes) -> Reply:
    """The reply, with exactly as many parts as were asked for, every number finite."""
    if len(output) > MAX_REPLY:
        raise ChildFailed(f"answered {len(output)} bytes")
    try:
        raw = json.loads(output.splitlines()[-1])
        reply = Reply(
            vocabulary=int(raw["vocabulary"]),
            tokens=tuple(tuple(int(i) for i in ids) for ids in raw["tokens"]),
            stops=tuple(bool(stop) for stop in raw["stops"]),
            prompts=tuple(tuple(_position(p) for p in prompt) for prompt in raw["prompts"]),
            greedy_text=str(raw["greedy_text"]),
            greedy_ended=bool(raw["greedy_ended"]),
            load_s=float(raw["load_s"]),
            score_s=float(raw["score_s"]),
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ChildFailed(f"answered something else than was asked: {error}") from error
    asked_for = len(request.texts), len(request.ends), len(request.prompts)
    if (len(reply.tokens), len(reply.stops), len(reply.prompts)) != asked_for:
        raise ChildFailed("answered other questions than were asked")
    for asked, positions in zip(request.prompts, reply.prompts, strict=True):
        if len(positions) != len(asked.wanted) or not all(map(_answers, positions, asked.wanted)):
            raise ChildFailed("answered other questions than were asked")
    return reply


def _answers(position: Position | None, wanted: tuple[tuple[int, ...], ...]) -> bool:
    return position is None or [len(scores.logs) for scores in position.scores] == [len(tokens) for tokens in wanted]


def _position(raw: dict[str, Any]) -> Position | None:
    if not raw["finite"]:
        return None
    return Position(int(raw["choice"]), tuple(_scores(scores) for scores in raw["sets"]))


def _scores(raw: dict[str, Any]) -> Scores:
    scores = Scores(tuple(float(log) for log in raw["logs"]), float(raw["tail"]))
    if not all(math.isfinite(log) for log in (*scores.logs, scores.tail)):
        raise ValueError("a probability that is not a number")
    return scores
