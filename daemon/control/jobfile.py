"""The job as the box gets it: run/job.json and the files that go up with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from daemon.control import adapters
from daemon.control.adapters import Adapter
from daemon.control.watch import away_limit_s
from daemon.domain.records import Job, Lease, StageRun
from daemon.domain.spec import JobSpec, Preference, Training
from daemon.settings import Settings
from remote_payload.contract import (
    DATA_DIR,
    AdapterSource,
    DataFile,
    Integration,
    JobFile,
    Lora,
    ModelSource,
    Stage,
    StagePlan,
    StageTraining,
)


@dataclass(frozen=True)
class DataSet:
    """One canonical data set in our state folder."""

    sha256: str
    rows: int
    original_sha256: str


def data_sets(job: Job) -> dict[str, DataSet]:
    """By kind: sft, dpo, eval."""
    kept = json.loads(job.data_json or "{}")
    return {kind: DataSet(**kept[kind]) for kind in ("sft", "dpo", "eval") if kind in kept}


def canonical_path(settings: Settings, data: DataSet) -> Path:
    return settings.paths.data / f"{data.sha256}.jsonl"


def remote_path(data: DataSet) -> str:
    return f"{DATA_DIR}/{data.sha256}.jsonl"


def local_model(job: Job, spec: JobSpec) -> Path | None:
    return model_folder(spec, Path(job.spec_dir))


def model_folder(spec: JobSpec, folder: Path) -> Path | None:
    """The base model's folder when the spec, written in `folder`, names one here; None for a hub id."""
    path = (folder / Path(spec.model).expanduser()).resolve()
    return path if path.is_dir() else None


def hub_name(model: str) -> tuple[str, str | None]:
    """'owner/name@revision' as repository and revision."""
    repo, _, revision = model.partition("@")
    return repo, revision or None


def model_source(job: Job, spec: JobSpec) -> ModelSource:
    local = local_model(job, spec)
    return ModelSource(local.name) if local else ModelSource(spec.model, hub_name(spec.model)[0], job.model_revision)


def build(job: Job, spec: JobSpec, lease: Lease, stages: tuple[StageRun, ...], settings: Settings) -> JobFile:
    data, earlier = data_sets(job), adapters.stored(job)
    return JobFile(
        job=job.id,
        attempt=job.attempt,
        name=spec.name,
        model=model_source(job, spec),
        stages=[StagePlan(Stage(run.stage), run.nonce, bool(run.fresh)) for run in stages],
        integration=integration(spec, data),
        lora=Lora(r=spec.lora.r, alpha=spec.lora.alpha, dropout=spec.lora.dropout),
        gguf=list(spec.export.gguf),
        start_from=_source(earlier.get("start_from")),
        compare_to=_source(earlier.get("compare_to")),
        sft_data=_file(data.get("sft")),
        dpo_data=_file(data.get("dpo")),
        eval_data=_file(data.get("eval")),
        sft=_training(spec.sft),
        dpo=_training(spec.dpo),
        batch_size=spec.batch_size,
        micro_batch_size=spec.micro_batch_size,
        placement=spec.placement,
        speed=spec.speed,
        max_length=spec.max_length,
        checkpoint_every=spec.checkpoint.every,
        checkpoint_keep=spec.checkpoint.keep,
        seed=spec.seed,
        reasoning=spec.reasoning,
        gates=spec.gates.model_dump(exclude_none=True),
        report_to=spec.report_to,
        choices=list(spec.eval.choices) if spec.eval else [],
        away_limit_s=away_limit_s(spec.limits.hold, lease.price_per_hour),
        notify_url=settings.notify_url,
    )


def integration(spec: JobSpec, data: dict[str, DataSet]) -> Integration:
    """The line the box must print; counts the spec leaves out are those counted here."""
    expected = spec.integration

    def rows(kind: str, named: int | None) -> int:
        counted = data[kind].rows if kind in data else 0
        return counted if named is None else named

    return Integration(expected.tag, rows("sft", expected.sft_rows), rows("dpo", expected.dpo_rows))


def _file(data: DataSet | None) -> DataFile | None:
    if data is None:
        return None
    return DataFile(path=remote_path(data), sha256=data.sha256, rows=data.rows, original_sha256=data.original_sha256)


def _source(adapter: Adapter | None) -> AdapterSource | None:
    return adapter.source if adapter else None


def _training(stage: Training | None) -> StageTraining | None:
    if stage is None:
        return None
    common = StageTraining(epochs=stage.epochs, lr=stage.lr, max_steps=stage.max_steps)
    return replace(common, beta=stage.beta) if isinstance(stage, Preference) else common
