"""Start `llama_child.py` fenced (fence.py), ask it one request, and believe no more of its answer than its shape.

Beside the fence the child has a scrubbed environment (no key, no agent, no home) and a time limit.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from daemon import platform
from daemon.artifacts.fence import fence

SCRIPT = Path(__file__).with_name("llama_child.py")
BESIDE_MODEL = 3 << 30  # bytes of address space for Python, numpy, context and logits
START_S = 120.0  # wall time for imports and a cold disk
SECONDS_PER_GB = 240.0  # wall time per 1e9 bytes of model; a slow single core needs a quarter of it
MAX_REPLY = 64 << 20  # bytes
MAX_TEXT = 1 << 14  # characters of what the model wrote
LAST_WORDS = 4096  # bytes of standard error
KILLED, NO_ROOM = -9, 3  # how it ends where the system takes its memory back, and where there is none to begin with


class ChildFailed(Exception):
    """The child ended badly, took too long, or answered something else than it was asked for."""


class ChildEnded(ChildFailed):
    """This computer had not the time or the memory for it, which says nothing of the file."""


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
    try:
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
    except (OSError, subprocess.SubprocessError) as error:  # too many processes, or narrower limits of the person's own
        raise ChildEnded(f"the child that opens the file cannot be started behind its fence: {error}") from error
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await _told(process, json.dumps(asdict(request)).encode())
            code = await process.wait()
    except TimeoutError as error:
        raise ChildEnded(f"no answer within {limit_s:.0f} s") from error
    finally:
        platform.end_group(process.pid)  # and whatever it may have started
        await process.wait()
    if code in (KILLED, NO_ROOM):
        raise ChildEnded(f"ended with code {code}, for want of memory as it seems: {_end_of(errors)}")
    if code:
        raise ChildFailed(f"ended with code {code}: {_end_of(errors)}")
    return replace(_parsed(request, output), fence=standing)


async def _told(process: asyncio.subprocess.Process, question: bytes) -> tuple[bytes, bytes]:
    """All of standard output, which may not be endless, and the end of standard error, which may."""
    asked, output, errors = (cast(Any, pipe) for pipe in (process.stdin, process.stdout, process.stderr))
    _, answer, last_words = await asyncio.gather(_put(asked, question), _whole(output), _last_words(errors))
    return answer, last_words


async def _put(pipe: asyncio.StreamWriter, question: bytes) -> None:
    with suppress(ConnectionError):  # it ended without reading on: its code says more
        pipe.write(question)
        await pipe.drain()
    pipe.close()


async def _whole(pipe: asyncio.StreamReader) -> bytes:
    answer = bytearray()
    while block := await pipe.read(1 << 16):
        answer += block
        if len(answer) > MAX_REPLY:
            raise ChildFailed(f"answered more than {MAX_REPLY} bytes")
    return bytes(answer)


async def _last_words(pipe: asyncio.StreamReader) -> bytes:
    end = b""
    while block := await pipe.read(1 << 16):
        end = (end + block)[-LAST_WORDS:]
    return end


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
    return kept | {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _end_of(errors: bytes) -> str:
    """The last lines of standard error as one printable line."""
    lines = errors.decode(errors="replace").strip().splitlines()[-3:] or ["nothing on standard error"]
    return "".join(c for c in "; ".join(lines) if c.isprintable())[-500:]


def _parsed(request: Request, output: bytes) -> Reply:
    """The reply, with exactly as many parts as were asked for, every number finite."""
    try:
        raw = json.loads(output.splitlines()[-1])
        reply = Reply(
            vocabulary=int(raw["vocabulary"]),
            tokens=tuple(tuple(int(i) for i in ids) for ids in raw["tokens"]),
            stops=tuple(bool(stop) for stop in raw["stops"]),
            prompts=tuple(tuple(_position(p) for p in prompt) for prompt in raw["prompts"]),
            greedy_text=str(raw["greedy_text"])[:MAX_TEXT],
            greedy_ended=bool(raw["greedy_ended"]),
            load_s=_number(raw["load_s"]),
            score_s=_number(raw["score_s"]),
        )
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
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
    return Scores(tuple(_number(log) for log in raw["logs"]), _number(raw["tail"]))


def _number(raw: Any) -> float:
    number = float(raw)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a number")
    return number
