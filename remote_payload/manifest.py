"""The last act of GGUF: read every file of run/out again, hash it whole and by chunk, write run/manifest.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from remote_payload import contract, hashes, script
from remote_payload.contract import ArtifactFile, Exit, JobFile, Manifest, Output, Quality, Role, Score, Stage
from remote_payload.layout import Layout, plan_of
from remote_payload.progress import Events
from remote_payload.script import ScriptFailed

# First match wins; a file that matches none has no business among the artifacts.
ROLES: list[tuple[str, Role]] = [
    ("adapter/*", Role.ADAPTER),
    ("tokenizer/*", Role.TOKENIZER),
    ("base/*", Role.BASE),
    ("*.gguf", Role.GGUF),
    ("reference.jsonl", Role.REFERENCE),
    ("metrics.jsonl", Role.METRICS),
    ("tensorboard/*/*", Role.METRICS),
    ("log.txt", Role.LOG),
    ("report.json", Role.REPORT),
]


def write_manifest(layout: Layout, job: JobFile, events: Events) -> Exit:
    files = [_describe(layout, path, job) for path in sorted(layout.out.rglob("*")) if not path.is_dir()]
    missing = [quant for quant in job.gguf if quant not in {f.quant for f in files}]
    if missing:
        raise ScriptFailed(Exit.GGUF_GATE, f"run/out lacks the GGUF of {', '.join(missing)}")
    plan = plan_of(job, Stage.GGUF)
    manifest = Manifest(
        job=job.job,
        attempt=job.attempt,
        nonce=plan.nonce if plan else "",
        created_at=time.time(),
        chunk_size=job.chunk_size,
        files=files,
        parents=_parents(layout),
        quality=_quality(layout.stage(Stage.GGUF) / "quality.json"),
        scores=scores(layout, job),
        tools=_tools(layout.stage(Stage.GGUF) / "tools.json"),
    )
    contract.write_whole(layout.manifest, contract.dump(manifest))
    events.emit("manifest", files=len(files), bytes=sum(f.size for f in files))
    return Exit.OK


def outputs(layout: Layout) -> list[Output]:
    """The manifest and every file it names, for done.json. Only the manifest is hashed: it holds the others' hashes."""
    manifest = contract.load(Manifest, layout.manifest.read_bytes())
    own = hashes.output(layout.root, layout.manifest.relative_to(layout.root).as_posix())
    return [own, *(Output(f.path, f.size, f.sha256) for f in manifest.files)]


def _describe(layout: Layout, path: Path, job: JobFile) -> ArtifactFile:
    name = path.relative_to(layout.out)
    role = next((role for pattern, role in ROLES if name.match(pattern)), None)
    if role is None or path.is_symlink() or not path.is_file():
        raise ScriptFailed(Exit.INTERNAL, f"run/out/{name} is not a file of any known role")
    digest = hashes.digest(path, job.chunk_size)
    relative = path.relative_to(layout.root).as_posix()
    quant = path.stem.removeprefix(f"{job.name}-") if role is Role.GGUF else None
    return ArtifactFile(relative, role, digest.size, digest.sha256, digest.chunks, quant)


def _parents(layout: Layout) -> dict[str, str]:
    """The sha256 of the adapter each training stage left, by stage."""
    adapters = {stage: layout.adapter(stage) / "adapter_model.safetensors" for stage in (Stage.SFT, Stage.DPO)}
    return {stage: hashes.sha256(path) for stage, path in adapters.items() if path.exists()}


def _quality(path: Path) -> list[Quality]:
    return [Quality(**score) for score in json.loads(path.read_text())] if path.exists() else []


def scores(layout: Layout, job: JobFile) -> list[Score]:
    """What the job's last training stage found on the held-out rows; nothing where it has none."""
    file = layout.held_out(Stage.DPO if plan_of(job, Stage.DPO) else Stage.SFT)
    if not file.exists():
        return []
    return [contract.load(Score, json.dumps(score)) for score in json.loads(file.read_text())["scores"]]


def _tools(path: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(script.run(Stage.GGUF, write_manifest))
