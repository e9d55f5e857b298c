"""What must be equal for a resume to go on with the same training, part by part, so that a refusal names what differs.

The micro batch is no part: the global batch stays, so a smaller one is the same training in less memory. Nor is the
number of processes, unless dropout draws from each one's own random numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from remote_payload import hashes
from remote_payload.contract import JobFile, StageTraining
from remote_payload.layout import Layout

HEAD = 1 << 20  # bytes of each model file that are hashed: a weight file's header names every tensor and its place
MODEL_SUFFIXES = (".json", ".safetensors", ".jinja", ".model")
SHOWN = 12  # characters of a hash, in a refusal


@dataclass(frozen=True)
class Fingerprint:
    """`parts` by name, as a person would read them."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()

    def differences(self, stored: Mapping[str, str]) -> list[str]:
        """Every part that is another in `stored`: its name, the value there, the value now."""
        names = sorted({*self.parts, *stored})
        pairs = [(name, _shown(stored.get(name)), _shown(self.parts.get(name))) for name in names]
        return [f"{name} {there} there, {now} now" for name, there, now in pairs if there != now]


def of(
    layout: Layout, job: JobFile, training: StageTraining, data_sha256: str, adapter: Path | None, processes: int
) -> Fingerprint:
    """Of one training stage. `adapter` is the one it goes on with, `processes` how many ranks it runs in."""
    parts = {
        "data": data_sha256,
        "lora.r": str(job.lora.r),
        "lora.alpha": str(job.lora.alpha),
        "lora.dropout": f"{job.lora.dropout:g}",
        "lora.target_modules": job.lora.target_modules,
        "lr": f"{training.lr:g}",
        "epochs": f"{training.epochs:g}",
        "max_steps": str(training.max_steps),
        "beta": f"{training.beta:g}",
        "batch_size": str(job.batch_size),
        "max_length": str(job.max_length),
        "seed": str(job.seed),
        "reasoning": job.reasoning,
        "speed": job.speed,
        "parent adapter": hashes.sha256(adapter / "adapter_model.safetensors") if adapter else "none",
    }
    for path in sorted(p for p in layout.model.iterdir() if p.suffix in MODEL_SUFFIXES):
        parts[f"model file {path.name}"] = f"{_head_sha256(path)} of {path.stat().st_size} bytes"
    if job.lora.dropout > 0:
        parts["processes"] = str(processes)
    return Fingerprint(parts)


def _shown(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) < 64 else f"{value[:SHOWN]}...{value[64:]}"


def _head_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.sha256(f.read(HEAD)).hexdigest()
