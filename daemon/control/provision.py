"""From a running machine to a provisioned one: proof, environment, preflight, payload, data, prepare.

Every step may be repeated: uploads are by content hash, bootstrap makes only what is missing, prepare only reads. No
stage is started here, so whatever goes wrong leaves the machine `unused`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from daemon.artifacts import hashing
from daemon.box.box import PREPARE_S, Box, BoxStatus
from daemon.box.lines import clean_line
from daemon.box.progress import Follow, nobody
from daemon.box.upload import Upload
from daemon.control import adapters, reporters
from daemon.control.adapters import Adapter
from daemon.control.jobfile import (
    DataSet,
    build,
    canonical_path,
    data_sets,
    integration,
    local_model,
    model_source,
    remote_path,
)
from daemon.control.quotes import expected
from daemon.domain import model_size
from daemon.domain.records import Job, Lease, StageRun
from daemon.domain.spec import JobSpec
from daemon.errors import HomeportError, RemoteFailed
from daemon.settings import Settings
from remote_payload.contract import MODEL_DIR, Exit, Needs, Prepared

log = structlog.get_logger()

FETCH_S = 3_600.0  # for which `prepare` may wait for a hub: preflight refuses a line that needs longer for the model
MEMORY_BASE = 3_000_000_000  # bytes of a machine's main memory that every job needs

# What a base model consists of; nothing that some program would unpickle or execute travels.
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja"})


class DataRefused(HomeportError):
    """`prepare` objects to data or base model."""


class AnotherAttempt(HomeportError):
    """Stages are running there that this database does not know."""


class IntegrationRefused(HomeportError):
    """The integration line is missing, or its counts are not those of the spec."""


async def provision(
    box: Box,
    job: Job,
    spec: JobSpec,
    lease: Lease,
    stages: tuple[StageRun, ...],
    settings: Settings,
    mirrored: Sequence[Upload] = (),
    follow: Follow = nobody,
    base: Mapping[str, str] | None = None,
) -> tuple[Prepared, str, dict[str, str]]:
    """Make the box ready for the first stage; returns what `prepare` counted, the interpreter to use, and the hashes of
    the base model's files that were sent, none for one of a hub.

    `mirrored` is the work that an earlier machine of the job did, to go on from. `follow` hears of the upload. `base`
    are the hashes that the job was given before: what was trained on it goes on on no other.

    Raises RemoteFailed (preflight or bootstrap: another machine), AnotherAttempt, DataRefused, IntegrationRefused,
    LinkLost.
    """
    needed = needs(job, spec)
    token = os.environ.get("HF_TOKEN")
    hub = {"HF_TOKEN": token} if token else {}
    await box.upload_payload()
    python = await box.bootstrap(reporters.pins(spec), hub | _model_to_fetch(needed))
    _refuse_another(await box.status(), stages, lease.instance_id)
    facts = await box.preflight(needed, hub)
    log.info("box.preflight", job=job.id, gpus=facts.get("gpus"), disk_free=facts.get("disk_free"))
    if objections := _objections(facts, spec.machine.count if settings.image.cuda else 0):
        raise RemoteFailed(f"preflight: {objections}", exit_code_remote=Exit.PREFLIGHT)
    ours = await asyncio.to_thread(lambda: list(_uploads(job, spec, settings)))  # hashes a base model of any size
    sent = {upload.local.name: upload.sha256 for upload in ours if upload.remote.startswith(f"{MODEL_DIR}/")}
    if base and sent != base:
        changed = sorted(name for name in base.keys() | sent.keys() if base.get(name) != sent.get(name))
        what = f"{', '.join(changed[:3])} of the base model changed since a machine was first given it"
        raise DataRefused(f"{what}: put it back in {local_model(job, spec)}, then jobctl resume {job.id}")
    await box.upload([*ours, *mirrored], follow)
    await box.write_job(build(job, spec, lease, stages, settings))
    prepared = await box.prepare(hub, PREPARE_S + (FETCH_S if _model_to_fetch(needed) else 0.0))
    check(prepared, spec, data_sets(job))
    return prepared, python, sent


def _refuse_another(found: BoxStatus, stages: tuple[StageRun, ...], instance: int) -> None:
    """A restored database may have forgotten the attempt that runs there. Raises AnotherAttempt."""
    if found.alive and found.status is not None and found.status.nonce not in {run.nonce for run in stages}:
        raise AnotherAttempt(f"instance {instance} works on another attempt than this database knows")


def needs(job: Job, spec: JobSpec) -> Needs:
    """What the machine must have. Of the disk nothing where the person said how much there is to be."""
    estimated = expected(spec, Path(job.spec_dir), {kind: data.rows for kind, data in data_sets(job).items()})
    return Needs(
        disk=0 if spec.machine.disk else estimated.work_bytes,
        # Sixteen tensors are merged at once, in fp32, beside what the libraries take.
        memory=MEMORY_BASE + round(estimated.parameters * model_size.WEIGHT_BYTES / 2),
        model=model_source(job, spec),
    )


def _model_to_fetch(needed: Needs) -> dict[str, str]:
    """For bootstrap.sh, which begins the download beside the installing."""
    model = needed.model
    if model is None or model.repo is None:
        return {}
    return {"HOMEPORT_MODEL": model.repo} | ({"HOMEPORT_REVISION": model.revision} if model.revision else {})


def _objections(facts: dict[str, Any], gpus: int) -> str:
    """What the preflight found, and GPUs that were rented and are not there; empty when all is well."""
    checks, cards = (found if isinstance(found := facts.get(name), list) else [] for name in ("checks", "gpus"))
    failed = [c for c in checks if isinstance(c, dict) and not c.get("ok")]
    told = [f"{c.get('name')}: {c.get('detail')}" for c in failed]
    if len(cards) < gpus:
        told.append(f"gpus: {gpus} are rented, {len(cards)} can be used")
    return clean_line("; ".join(told) or ("" if facts["ok"] else "failed without a reason"))[:500]


def check(prepared: Prepared, spec: JobSpec, data: dict[str, DataSet]) -> None:
    """Our own judgement of what the box read: its word alone is not enough."""
    expected = integration(spec, data)
    line = expected.line(expected.sft_rows, expected.dpo_rows)
    counted = (prepared.sft_rows, prepared.dpo_rows) == (expected.sft_rows, expected.dpo_rows)
    if prepared.exit_code == Exit.INTEGRATION or (prepared.ok and not (counted and prepared.line == line)):
        read = f"read {prepared.line!r} from {prepared.sft_rows} SFT and {prepared.dpo_rows} DPO rows"
        objections = [f"expected the line {line!r}, the box {read if prepared.line else 'printed none'}"]
        raise IntegrationRefused("; ".join(objections + prepared.problems[:5]))
    if not prepared.ok:
        raise DataRefused("; ".join(prepared.problems[:5]) or f"prepare ended with {prepared.exit_code}")


def _uploads(job: Job, spec: JobSpec, settings: Settings) -> Iterator[Upload]:
    for data in data_sets(job).values():
        path = canonical_path(settings, data)
        yield Upload(path, remote_path(data), data.sha256, path.stat().st_size)
    for adapter in adapters.stored(job).values():
        yield from _unchanged(adapter)
    if (model := local_model(job, spec)) is not None:
        for file in sorted(model.iterdir()):
            if file.suffix in MODEL_SUFFIXES and file.is_file():
                yield _hashed(file, f"{MODEL_DIR}/{file.name}")


def _unchanged(adapter: Adapter) -> Iterator[Upload]:
    """Raises DataRefused when a file is not what it was at submit: the job would go on from something else."""
    try:
        for upload in adapter.uploads():
            if hashing.sha256(upload.local) != upload.sha256:
                raise DataRefused(f"{upload.local} is not the file that it was at submit")
            yield upload
    except OSError as error:
        raise DataRefused(f"the adapter {adapter.name} cannot be read any more: {error}") from error


def _hashed(file: Path, remote: str) -> Upload:
    return Upload(file, remote, hashing.sha256(file), file.stat().st_size)
