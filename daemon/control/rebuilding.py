"""Building here what the machine builds there, while it does, so that little is left to fetch when it is done.

A guess, made beside the job and never in its way: whatever fails here, at whatever moment, leaves an ordinary download.
What is ready when the manifest is here becomes the `.part` of its file, and the download proves every chunk of it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import structlog
from sqlalchemy import Connection

from daemon.artifacts.rebuild import RebuildFailed
from daemon.box.box import Box
from daemon.box.download import placed
from daemon.box.part import part_of
from daemon.control import delivery, jobfile, quotes
from daemon.control.homecoming import ADAPTER_WEIGHTS, Homecoming
from daemon.control.mirror import TRAINING
from daemon.control.mirroring import Mirroring
from daemon.control.world import World
from daemon.domain import deliver
from daemon.domain.deliver import DOWNLOAD, Delivery
from daemon.domain.records import Lease, StageRun
from daemon.domain.snapshot import Snapshot
from daemon.domain.spec import JobSpec
from daemon.errors import BoxError, LinkLost
from daemon.store import downloads, events
from remote_payload.contract import ArtifactFile, ContractError, Manifest, Prepared, Role, load

log = structlog.get_logger()
RETRY_S = 60.0  # between tries to have the base model from the hub


@dataclass
class Rebuilding:
    """Of one job: at most one rebuild at a time, that of the current attempt."""

    world: World
    job_id: str
    spec: JobSpec
    rows: dict[str, int]
    mirroring: Mirroring
    _attempt: str = ""  # the nonce of the GGUF stage that the task below works for
    _task: asyncio.Task[None] | None = None
    _way: Delivery | None = None
    _root: Path = Path()
    _made: dict[str, ArtifactFile] = field(default_factory=dict)  # by quant, whole and not handed over
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # the choice, a file more, or the end of the task
    _looked: asyncio.Event = field(default_factory=asyncio.Event)  # at the machine; the adapter may be here

    def follow(self, s: Snapshot, lease: Lease) -> None:
        """Begin, unless that is under way or not wanted."""
        if self.spec.deliver == DOWNLOAD:
            return
        self._looked.set()
        if self._attempt == (attempt := s.stages[-1].nonce):
            return
        self._end()
        self._attempt, self._made, self._way = attempt, {}, None
        self._task = asyncio.create_task(self._try(s, lease))
        self._task.add_done_callback(lambda _: self._news.set())

    async def place(self, s: Snapshot, lease: Lease, box: Box, home: Homecoming) -> int:
        """Before the first byte of a download: put what is ready where it goes on from. Returns the bytes that need
        not be fetched. A rebuild that is not ready is waited for while that can pay.

        Raises LinkLost; may be called again.
        """
        with self.world.database.read() as c:
            begun = downloads.is_begun(c, self.job_id, s.job.manifest_sha256 or "")
        if self.spec.deliver == DOWNLOAD or begun:
            return 0
        manifest, trained = load(Manifest, s.job.manifest_json or ""), _last_training(s)
        self.follow(s, lease)
        total = 0
        try:
            await self.mirroring.stop()  # it may be at a checkpoint that nobody needs any more
            await self.mirroring.bring(box, [trained], None)
            self._looked.set()
            if await self._is_chosen():
                await self._wait(manifest)
                await self.stop()
                total = await asyncio.to_thread(self._hand_over, manifest, home.incoming, trained)
        except LinkLost:
            raise
        except (BoxError, ContractError, OSError) as error:
            self._failed(str(error))
        await self.forget()  # at once: the download needs the room
        return total

    async def stop(self) -> None:
        """End what runs; nothing of it is needed again."""
        self._end()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Its driver ends. One that goes on, as after a crash, begins it anew."""
        await self.stop()
        self._attempt = ""

    async def forget(self) -> None:
        """What was made and not taken makes room. What cannot be deleted stays, and is said."""
        if self.spec.deliver == DOWNLOAD:
            return
        await self.stop()
        try:
            await asyncio.to_thread(self.world.workshop.forget, self.job_id)
        except OSError as error:
            log.warning("rebuild.kept", job=self.job_id, error=str(error))

    def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _try(self, s: Snapshot, lease: Lease) -> None:
        try:
            model = jobfile.local_model(s.job, self.spec)
            if model is not None:
                await self._adapter_home(s)  # nothing is to be done before, and by then the line may have been measured
            self._way = await self._choose(s)
            self._news.set()
            if self._way.way != DOWNLOAD:
                await self._rebuild(s, lease, model or await self._fetch_base(s.job.model_revision or ""))
        except Exception as error:
            expected = isinstance(error, RebuildFailed | OSError | ContractError)
            log.warning("rebuild.failed", job=self.job_id, exc_info=error)
            self._failed(str(error) if expected else repr(error))

    async def _choose(self, s: Snapshot) -> Delivery:
        folder = Path(s.job.spec_dir)
        with self.world.database.read() as c:
            measured = self._measured(c)
            told = events.newest(c, self.job_id, ("deliver.chosen",))
        expected = quotes.expected(self.spec, folder, self.rows, line=measured)
        way, _ = await delivery.choose(
            self.world, self.spec, folder, expected, measured=measured, revision=s.job.model_revision
        )
        if told is None or told.body != {"way": way.way, "why": way.why}:
            self._note("deliver.chosen", way=way.way, why=way.why)
        return way

    async def _adapter_home(self, s: Snapshot) -> None:
        while not self.mirroring.mirror.has_outputs(_last_training(s)):
            self._looked.clear()
            await self._looked.wait()

    async def _rebuild(self, s: Snapshot, lease: Lease, model: Path) -> None:
        workshop = self.world.workshop
        await workshop.fetch_converter()
        await self._adapter_home(s)
        job = jobfile.build(s.job, self.spec, lease, s.stages, self.world.settings)
        prepared = load(Prepared, s.job.prepared_json or "")
        adapter = self.mirroring.mirror.adapter(_last_training(s))
        self._root = await asyncio.to_thread(workshop.lay_out, job, prepared, model, adapter)
        self._note("rebuild.started", files=list(self.spec.export.gguf))
        await workshop.build(self._root, self._add)

    async def _fetch_base(self, revision: str) -> Path:
        """The hub's model, however often the hub does not answer; the job only waits for it as `place` waits."""
        repo, _ = jobfile.hub_name(self.spec.model)
        hub = {"HF_ENDPOINT": self.world.settings.hub}
        if token := os.environ.get("HF_TOKEN"):
            hub["HF_TOKEN"] = token
        said = ""
        while True:
            try:
                return await self.world.workshop.fetch_base(repo, revision, hub)
            except RebuildFailed as error:
                if str(error) != said:
                    self._failed(said := str(error))
                await asyncio.sleep(RETRY_S)

    def _add(self, file: ArtifactFile) -> None:
        self._made[file.quant or ""] = file
        self._news.set()

    async def _is_chosen(self) -> bool:
        """Whether files are to be rebuilt; the task says it soon after the adapter is here."""
        while self._way is None and self._task is not None and not self._task.done():
            self._news.clear()
            await self._news.wait()
        return self._way is not None and self._way.way != DOWNLOAD

    async def _wait(self, manifest: Manifest) -> None:
        """Until the files that are the same everywhere are made, or cannot be, or it no longer pays."""
        with self.world.database.read() as c:
            line = deliver.line_of(self.spec, self._measured(c))
        size = sum(file.size for file in manifest.files if self._is_awaited(file))
        try:
            async with asyncio.timeout(deliver.patience_s(size, line)):
                while self._task and not self._task.done() and any(self._is_awaited(file) for file in manifest.files):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:  # an event tells it
            self._failed("it took longer than a download")

    def _measured(self, c: Connection) -> float | None:
        """Mbit/s of this job's own mirror, else of the last model's way home."""
        mirrored = events.newest(c, self.job_id, ("line.measured",))
        return float(mirrored.body["mbps"]) if mirrored else downloads.measured_line(c)

    def _is_awaited(self, file: ArtifactFile) -> bool:
        exact = file.role is Role.GGUF and any(q == file.quant and deliver.is_exact(q) for q in self.spec.export.gguf)
        return exact and file.quant not in self._made

    def _hand_over(self, manifest: Manifest, incoming: Path, trained: StageRun) -> int:
        """The adapter, and the files here that agree with the manifest in any chunk, as parts of the download. Blocks.

        Raises ContractError for a manifest that must not be followed, before anything is touched; OSError.
        """
        parts = {path: part_of(incoming / home) for path, home in placed(manifest).items()}
        total = 0
        for file in manifest.files:
            made = self._made.pop(file.quant or "", None) if file.role is Role.GGUF else None
            if made is None:
                continue
            agreeing = _agreeing_bytes(file, made, manifest.chunk_size)
            if agreeing:
                _make_way(parts[file.path])
                (self._root / made.path).replace(parts[file.path])
            total += agreeing
            self._note("rebuild.compared", quant=file.quant, size=file.size, agreeing=agreeing)
        mirrored = self.mirroring.mirror.adapter(trained) / ADAPTER_WEIGHTS
        adapter = next(filter(_is_adapter, manifest.files), None)
        if adapter is not None and adapter.size == mirrored.stat().st_size:
            _make_way(parts[adapter.path])
            shutil.copyfile(mirrored, parts[adapter.path])
            total += adapter.size
        return total

    def _failed(self, why: str) -> None:
        self._note("rebuild.failed", why=why[:500])

    def _note(self, kind: str, **body: Any) -> None:
        with self.world.database.write() as c:
            events.add(c, kind, self.world.clock.wall_ms(), job=self.job_id, **body)


def _last_training(s: Snapshot) -> StageRun:
    return next(run for run in reversed(s.stages) if run.stage in TRAINING)


def _is_adapter(file: ArtifactFile) -> bool:
    return file.role is Role.ADAPTER and PurePosixPath(file.path).name == ADAPTER_WEIGHTS


def _make_way(part: Path) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)


def _agreeing_bytes(promised: ArtifactFile, made: ArtifactFile, chunk_size: int) -> int:
    """Of the chunks that hash alike at the same place."""
    alike = (i for i, pair in enumerate(zip(promised.chunks, made.chunks, strict=False)) if pair[0] == pair[1])
    return sum(min(chunk_size, promised.size - i * chunk_size) for i in alike)
