"""The way home: the manifest, the download, the proof, the receipt; and what is saved of a job that ends early."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import structlog

from daemon import platform
from daemon.artifacts import base as base_model
from daemon.artifacts import folder as model_folder
from daemon.artifacts import receipt as receipts
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.hashing import sha256
from daemon.artifacts.verify import Depth, Report, Say
from daemon.box.box import Box
from daemon.box.pace import Pace
from daemon.box.progress import Follow
from daemon.clock import Clock
from daemon.control.jobfile import data_sets, hub_name, local_model
from daemon.control.world import Verify
from daemon.domain.coverage import STAGES, coverage
from daemon.domain.records import Job, StageRun
from daemon.domain.spec import JobSpec
from daemon.errors import TransferFailed
from daemon.settings import Settings
from daemon.store import downloads, events
from daemon.store.database import Database
from remote_payload.contract import MANIFEST_FILE, RUN_DIR, Done, Manifest, Role, Stage, load

log = structlog.get_logger()
ADAPTER_WEIGHTS = "adapter_model.safetensors"


async def base_identity(name: str, revision: str | None, settings: Settings) -> BaseIdentity:
    """The base model as this workstation knows it; a hub commit fetched once needs no network again."""
    return await base_model.base_identity(
        name, revision, settings.paths.state / "base", endpoint=settings.hub, token=os.environ.get("HF_TOKEN")
    )


def trained_on(job: Job, spec: JobSpec) -> tuple[dict[str, Any], ...]:
    """For the receipt: each data set with its hashes, and how far its rows got."""
    sets, prepared = data_sets(job), json.loads(job.prepared_json or "{}")
    counted = coverage({kind: each.rows for kind, each in sets.items()}, prepared, spec.batch_size) if prepared else []
    reached = {
        STAGES[c.stage]: {"kept": c.kept, "trained": c.trained, "truncated": c.truncated, "steps": c.steps}
        for c in counted
    }
    return tuple(
        {"kind": kind, "sha256": each.sha256, "original_sha256": each.original_sha256, "read": each.rows}
        | reached.get(kind, {})
        for kind, each in sets.items()
    )


def another_adapter(manifest: Manifest, runs: Sequence[StageRun]) -> str:
    """Why the adapter in `manifest` is not what the last training stage said, when it ended, that it left; '' if it is.

    Of an earlier stage, or of another job: the answers would be those of a model that nobody asked for.
    """
    trained = [load(Done, run.done_json) for run in runs if run.done_json and run.stage != Stage.GGUF]
    if not trained:
        return ""
    left = {PurePosixPath(output.path).name: output.sha256 for output in trained[-1].outputs}
    came = {PurePosixPath(file.path).name: file.sha256 for file in manifest.files if file.role is Role.ADAPTER}
    if came.get(ADAPTER_WEIGHTS) == left.get(ADAPTER_WEIGHTS):
        return ""
    return f"the adapter in the manifest is not the one that {trained[-1].stage} ended with"


@dataclass(frozen=True)
class Homecoming:
    """Takes one job's artifact set from its box to the model folder."""

    job: Job
    spec: JobSpec
    settings: Settings
    database: Database
    clock: Clock
    verify: Verify

    @property
    def incoming(self) -> Path:
        return self.settings.paths.models / f".incoming-{self.job.id}"

    async def manifest(self, box: Box, runs: Sequence[StageRun]) -> tuple[str, str]:
        """The manifest's text and sha256, checked against what the stages' done.json say. Raises TransferFailed.

        `runs` are the attempt's stages, the last one that of the GGUF.
        """
        run = runs[-1]
        found = await box.manifest()
        if found is None:
            raise TransferFailed("the box says the GGUF stage is done, but has no manifest")
        manifest, sha256, text = found
        done = load(Done, run.done_json or "")
        promised = {o.path: o.sha256 for o in done.outputs}.get(f"{RUN_DIR}/{MANIFEST_FILE}")
        if promised != sha256 or hashlib.sha256(text.encode()).hexdigest() != sha256:
            raise TransferFailed("the manifest is not the one that the GGUF stage's done.json names")
        if (manifest.job, manifest.nonce) != (self.job.id, run.nonce):
            raise TransferFailed(f"the manifest is of job {manifest.job}, nonce {manifest.nonce}")
        made = {file.quant for file in manifest.files if file.role is Role.GGUF}
        if missing := set(self.spec.export.gguf) - made:
            raise TransferFailed(f"the manifest lacks {', '.join(sorted(missing))}")
        if problem := another_adapter(manifest, runs):
            raise TransferFailed(problem)
        return text, sha256

    async def download(self, box: Box, follow: Follow) -> None:
        """Every file of the current manifest under `incoming`, whole. Raises OSError (ENOSPC) before the first byte."""
        manifest = self._manifest()
        self.incoming.mkdir(parents=True, exist_ok=True)
        platform.sync_folder(self.incoming.parent)  # what is recorded as durable lies in a folder that is
        durable = downloads.DurableChunks(self.database, self.job.id, self.job.manifest_sha256 or "", self.clock)
        await box.download(manifest, self.incoming, durable, follow, Pace.on_line(self.spec.limits.line))

    async def prove(self, say: Say, accepted: Mapping[str, Any] | None) -> Report:
        """L0 to L5 of what lies in `incoming`; `accepted` is what the person accepted of this very set, if anything.

        Raises WorkstationUnfit or SpecError when the base model, which L3 compares with, cannot be had.
        """
        base = await base_identity(self._base_name, self.job.model_revision, self.settings)
        base = replace(base, without_opening=self._without_opening)
        depth: Depth = accepted["level"] if accepted else self.spec.verify.level
        return await self.verify(self.incoming, self._manifest(), base, depth, say)

    def changed_base(self) -> Path | None:
        """A file of the base model's folder here that the machine was given another way: L3 compares with it."""
        with self.database.read() as c:
            sent = events.newest(c, self.job.id, ("base.sent",))
        folder = local_model(self.job, self.spec)
        given: dict[str, str] = sent.body["files"] if sent is not None and folder is not None else {}
        names = [name for name in (*base_model.REQUIRED, *base_model.OPTIONAL) if name in given]
        files = [folder / name for name in names] if folder is not None else []
        return next((f for f in files if not f.is_file() or sha256(f) != given[f.name]), None)

    @property
    def _base_name(self) -> str:
        source = local_model(self.job, self.spec)
        return str(source) if source else hub_name(self.spec.model)[0]

    @property
    def _without_opening(self) -> bool:
        return self.spec.reasoning == "none"

    def settle_in(self, report: Report, log_file: Path, accepted: dict[str, Any] | None) -> receipts.Receipt:
        """The model folder in its final place, durable, and the receipt that describes it. May be repeated."""
        return model_folder.settle(
            self.settings.paths.models,
            self.incoming,
            manifest_text=self.job.manifest_json or "",
            name=self.spec.name,
            report=report,
            spec_text=self.job.spec_text,
            base_model=self.spec.model,
            base={
                "model": self._base_name,
                "revision": self.job.model_revision,
                "without_opening": self._without_opening,
            },
            data=trained_on(self.job, self.spec),
            accepted=accepted if report.depth != "full" else None,
            log_file=log_file if log_file.exists() else None,
        )

    def settled(self) -> receipts.Receipt | None:
        """The receipt of this artifact set, if its folder already is in its final place."""
        return model_folder.settled(
            self.settings.paths.models,
            name=self.spec.name,
            job=self.job.id,
            manifest_sha256=self.job.manifest_sha256 or "",
        )

    def _manifest(self) -> Manifest:
        return load(Manifest, self.job.manifest_json or "")
