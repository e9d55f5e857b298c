"""The acts that bring a model home: what is promised, fetched, saved, and proven."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

from daemon.artifacts.levels import IDENTITY, Level
from daemon.artifacts.receipt import Changed, Receipt
from daemon.control.acting import Acting
from daemon.control.bell import PAUSE_S
from daemon.control.transfers import told
from daemon.control.watch import calling
from daemon.domain import actions
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import Trigger
from daemon.domain.machine import fire
from daemon.domain.snapshot import Snapshot
from daemon.errors import SpecError, TransferFailed, WorkstationUnfit
from daemon.store import artifacts, downloads, events, jobs
from remote_payload.contract import Status


async def fetch_manifest(a: Acting, s: Snapshot, action: actions.FetchManifest) -> None:
    text, sha256 = await a.home(s).manifest(await a.link.to(action.lease), s.stages)
    with a.world.database.write() as c:
        now = a.world.clock.wall_ms()
        jobs.change(c, s.job, now, a.world.database.epoch, manifest_json=text, manifest_sha256=sha256)
        events.add(c, "manifest.stored", now, job=a.job_id, sha256=sha256)


async def download(a: Acting, s: Snapshot, action: actions.Download) -> None:
    box, home = await a.link.to(action.lease), a.home(s)
    async with calling(box):
        rebuilt = await a.rebuilding.place(s, action.lease, box, home)
        with a.world.database.write() as c:
            here = downloads.bytes_here(c, a.job_id) + rebuilt
            events.add(c, "download.started", a.world.clock.wall_ms(), job=a.job_id, here=here)
        with told(a.world, a.job_id, "DOWNLOAD") as follow:
            await home.download(box, follow)


async def save(a: Acting, s: Snapshot, action: actions.Save) -> None:
    box = await a.link.to(action.lease)
    before = (await box.status()).status
    await a.mirroring.stop()  # it keeps a pace, and may be at an older checkpoint
    try:
        async with calling(box):
            count = await a.mirroring.bring(box, s.stages, before)
    except TransferFailed:
        now = await box.status()
        if not now.alive or _checkpoint(now.status) == _checkpoint(before):
            raise
        await a.bell.wait(PAUSE_S)  # training goes on and was quicker: there is a newer one
        return
    folder = str(a.mirroring.mirror.folder)
    with a.world.database.write() as c:
        events.add(c, "job.saved", a.world.clock.wall_ms(), job=a.job_id, files=count, folder=folder)


def _checkpoint(status: Status | None) -> str | None:
    return status.checkpoint if status is not None else None


async def verify(a: Acting, s: Snapshot, action: actions.Verify) -> None:
    """L0 to L5 on what lies on this disk; then folder, receipt and state, the last two in one transaction.

    Each level's verdict and numbers are stored before the next begins.
    """
    w, home = a.world, a.home(s)
    lines: list[str] = []

    def store(level: Level) -> None:
        lines.append(level.line)
        with w.database.write() as c:
            events.add(c, "verify.level", w.clock.wall_ms(), job=a.job_id, **asdict(level))

    if (receipt := home.settled()) is not None:  # a crash came between the rename and this record
        _verified(a, s, receipt)
        return
    with w.database.read() as c:
        accepted = artifacts.accepted_level(c, s.job)
    try:
        report = await home.prove(store, accepted)
    except (WorkstationUnfit, SpecError) as error:  # the base model, which was there at submit, cannot be had or read
        a.hold(s, HoldReason.NOT_VERIFIED, f"{IDENTITY}: not run: {error}")
        return
    with w.database.write() as c:
        events.add(
            c,
            "verify.report",
            w.clock.wall_ms(),
            job=a.job_id,
            passed=report.passed,
            levels=lines,
            sample=report.sample,
        )
    if report.problem.startswith(IDENTITY) and (changed := home.changed_base()):
        why = f"{changed} is not what the machine was given: put it back as it was ({report.problem})"
        a.hold(s, HoldReason.NOT_VERIFIED, f"{IDENTITY}: not run: {why}")
        return
    if not report.passed:
        a.hold(s, HoldReason.NOT_VERIFIED if report.stopped_short else HoldReason.VERIFY_FAILED, report.problem)
        return
    log_file = w.job_folder(a.job_id) / "log.txt"
    try:
        receipt = await _whole(asyncio.to_thread(home.settle_in, report, log_file, accepted))
    except Changed as error:
        a.hold(s, HoldReason.VERIFY_FAILED, str(error))
        return
    _verified(a, s, receipt)


async def _whole(work: Coroutine[Any, Any, Receipt]) -> Receipt:
    """To its end, also where it is cut short: its thread goes on, and who looks next has to find what it left."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _verified(a: Acting, s: Snapshot, receipt: Receipt) -> None:
    """Receipt and state in one transaction."""
    w = a.world
    now = w.clock.wall_ms()
    with w.database.write() as c:
        artifacts.add_receipt(
            c,
            s.job,
            now,
            folder=receipt.folder,
            files=json.dumps([asdict(f) for f in receipt.files]),
            levels=json.dumps(receipt.levels),
            level=receipt.level,
        )
        to = fire(s.job.state, Trigger.VERIFY, a.facts(s, has_receipt=True))
        jobs.move(c, s.job, to, now, w.database.epoch, model_dir=receipt.folder)
    w.news.set()
