"""One look at a box: its status, its new events and log lines, and whether the current stage has ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from daemon.box.box import Box, LineFile
from daemon.box.lines import clean_line
from daemon.clock import Clock
from daemon.domain.records import Job, StageRun
from daemon.errors import BoxError, RemoteFailed, TransferFailed
from daemon.store import reports, stages
from daemon.store.database import Database
from remote_payload.contract import Done, Failed, Stage, dump

log = structlog.get_logger()
CALL_S = 30.0  # between calls that only say that we are here
READ_LIMIT = 1 << 20  # bytes of events or log at a time
LOOK_BLOCKS = 16  # of these a look takes of each: a box that writes faster than we read must not make a look endless
MOST_BYTES = 256 << 20  # of each that is ever taken: nor may it fill this disk
MAX_EVENT_BYTES = 64 << 10
STEP_KEYS = ("t", "step")
LARGEST_NUMBER = 2**53  # where a JSON number is not exact any more; other numbers may be words, as a loss of "nan" is


@dataclass
class Seen:
    """What one look found out about the current stage."""

    ended: bool = False
    failure: str | None = None  # the box's own words, when the stage failed


def away_limit_s(limit: int, price_per_hour: int) -> float:
    """How long a box stands idle and uncalled before it stops itself: as long as `limit` micro-dollars pay for.

    But never so short that one call which comes late would be an absence.
    """
    return max(limit / max(price_per_hour, 1) * 3600, 3 * CALL_S)


@asynccontextmanager
async def calling(box: Box) -> AsyncIterator[None]:
    """Call the box now and then while something else is under way; see `away_limit_s`."""

    async def call() -> None:
        while True:
            await asyncio.sleep(CALL_S)
            with contextlib.suppress(BoxError):  # whatever ails it, the transfer itself will say so
                await box.run("true")

    task = asyncio.create_task(call())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def look(box: Box, job: Job, run: StageRun, database: Database, clock: Clock, log_file: Path) -> Seen:
    """Record everything new. Raises LinkLost; whatever was read before it is kept."""
    status = await box.status()
    with database.write() as c:
        reports.put(
            c,
            job.id,
            job.attempt,
            status_json=dump(status.status) if status.status else None,
            alive=1,  # until it is read what its end was: a crash in between must not make that a death
            seen_at=clock.wall_ms(),
        )
        report = reports.get(c, job.id)
    if report is None:
        raise RemoteFailed("no report of this box is stored", exit_code_remote=0)
    await _read_events(box, job, database, report.events_offset)
    await _read_log(box, job, database, report.log_offset, log_file)
    end = await end_of(box, run)
    if isinstance(end, Done) or not status.alive:
        with database.write() as c:
            reports.put(c, job.id, job.attempt, alive=int(status.alive))
            if isinstance(end, Done):
                stages.mark_done(c, run, dump(end), clock.wall_ms())
                return Seen(ended=True)
    if isinstance(end, Failed):
        kept = f", newest whole checkpoint {end.checkpoint}" if end.checkpoint else ""
        return Seen(failure=clean_line(f"{end.reason} (exit {end.exit_code}{kept}) {end.detail}".strip())[:1000])
    return Seen()


async def end_of(box: Box, run: StageRun) -> Done | Failed | None:
    """What the box says that it came to. Only this nonce's own done.json ends a stage: raises TransferFailed."""
    end = await box.stage_end(run.nonce)
    if isinstance(end, Done) and (end.nonce, end.stage) != (run.nonce, run.stage):
        raise TransferFailed(f"done.json of {run.stage} names {end.stage} {end.nonce}, expected {run.nonce}")
    return end


async def _blocks(box: Box, name: LineFile, offset: int) -> AsyncIterator[tuple[bytes, int]]:
    """Whole lines from `offset` on, each block with the offset behind it, as far as one look goes."""
    for _ in range(LOOK_BLOCKS):
        if offset + READ_LIMIT > MOST_BYTES:  # before it is fetched: each look would pay for a block to throw away
            return
        chunk, after = await box.read_lines(name, offset, READ_LIMIT)
        if after == offset:
            return
        yield chunk, after
        offset = after


async def _read_events(box: Box, job: Job, database: Database, offset: int) -> None:
    async for chunk, after in _blocks(box, "events", offset):
        steps = [e for line in chunk.splitlines() if (e := _event(line)) is not None and e.get("kind") == "step"]
        with database.write() as c:
            reports.add_steps(c, job.id, job.attempt, steps)
            reports.put(c, job.id, job.attempt, events_offset=after)


def _event(line: bytes) -> dict[str, Any] | None:
    """One event, None for a line that is none: the box is not trusted to write sense."""
    if len(line) > MAX_EVENT_BYTES:
        return None
    try:
        event = json.loads(line)
        return event if event.get("kind") != "step" or _is_step(event) else None
    except (ValueError, AttributeError, RecursionError):  # RecursionError: arrays in arrays in arrays
        log.info("box.bad_event", line=clean_line(line[:200].decode("utf-8", "replace")))
        return None


def _is_step(event: dict[str, Any]) -> bool:
    """Whether the metrics table has room for it: a stage we know, a step, a time, and no number beyond all measure."""
    if event.get("stage") not in tuple(Stage) or not all(isinstance(event.get(key), int | float) for key in STEP_KEYS):
        return False
    return all(abs(value) < LARGEST_NUMBER for value in event.values() if isinstance(value, int | float))


async def _read_log(box: Box, job: Job, database: Database, offset: int, log_file: Path) -> None:
    async for chunk, after in _blocks(box, "log", offset):
        _append(log_file, chunk)
        with database.write() as c:
            reports.put(c, job.id, job.attempt, log_offset=after)


def _append(log_file: Path, chunk: bytes) -> None:
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "a", encoding="utf-8") as f:
        for line in chunk.decode("utf-8", "replace").splitlines():
            f.write(clean_line(line) + "\n")
