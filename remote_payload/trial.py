"""Do ranks train what one process trains, on this machine? Tried on a miniature of the stage that is about to run.

The miniature is a root of its own under run/trial: the model's first two layers, the first rows, the job cut to three
steps. Both sides run the stage's own script, so whatever the training uses (attention, packing, kernels) is compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from remote_payload import contract, placement
from remote_payload.chain import interpreter
from remote_payload.contract import DATA_DIR, DataFile, JobFile, Stage, StagePlan
from remote_payload.layout import Layout
from remote_payload.placement import Placed
from remote_payload.progress import read_from
from remote_payload.ranks import Ranks

LAYERS = 2
STEPS = 3  # the schedule warms up from nothing, so the third is the first whose loss shows an update
LIMIT_S = 90.0  # for one side; three steps of two layers take seconds, libraries and first exchange the rest
# Relative; bf16 rounds the sums of other groupings differently, fp32 hardly.
TOLERANCE = {"cuda": 5e-3, "cpu": 1e-4}
WEIGHTS = (".safetensors", ".index.json", ".bin")

Curve = list[tuple[float, float]]  # loss and gradient norm of every step


class Trial:
    """The miniature of `stage`. All take micro batches of one size, so that only who takes them differs."""

    def __init__(self, layout: Layout, job: JobFile, stage: Stage, micro_batch: int) -> None:
        self.layout, self.job, self.stage, self.micro_batch = layout, job, stage, micro_batch
        self.folder = layout.run / "trial"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.model = self.folder / contract.MODEL_DIR
        save_slice(layout.model, self.model)

    @cached_property
    def alone(self) -> Curve:
        """What one process comes to. Raises TrialFailed."""
        return self.curve(1, {})

    def curve(self, processes: int, environment: Mapping[str, str]) -> Curve:
        """Train it in so many processes. Raises TrialFailed when they do not come to the last step."""
        root = Layout(self.folder / f"{processes}-{len(environment)}")
        shutil.rmtree(root.root, ignore_errors=True)
        root.run.mkdir(parents=True)
        root.model.symlink_to(self.model)
        job = self._job(root, processes)
        contract.write_whole(root.run / contract.JOB_FILE, contract.dump(job))
        prepared = dataclasses.replace(self.layout.read_prepared(), steps={str(self.stage): STEPS})
        contract.write_whole(root.prepared, contract.dump(prepared))
        if processes > 1:
            placement.decide(root, job, Placed("ddp", processes))
        command = [interpreter(), "-m", f"remote_payload.{self.stage.lower()}", "--root", str(root.root)]
        with open(root.log, "wb") as log:
            code = Ranks.start(command, processes, {**os.environ, **environment}, log, []).finish(LIMIT_S)
        steps = [line for line in read_from(root.events, 0)[0] if line["kind"] == "step"]
        if len(steps) < STEPS:
            ended = "did not end in time" if code is None else f"ended with {code}"
            raise TrialFailed(f"{processes} processes {ended}: {last_line(root.log)}")
        return [(float(step["loss"]), float(step["grad_norm"])) for step in steps]

    def _job(self, root: Layout, processes: int) -> JobFile:
        """The job, cut to what a trial needs."""
        stage = self.stage.lower()
        rows = first_rows(self.layout, getattr(self.job, f"{stage}_data"), root, STEPS * self.job.batch_size)
        only_stage: dict[str, Any] = {"sft": None, "dpo": None, stage: getattr(self.job, stage), f"{stage}_data": rows}
        return dataclasses.replace(
            self.job,
            stages=[StagePlan(self.stage, "trial")],
            placement="ddp" if processes > 1 else "single",
            lora=dataclasses.replace(self.job.lora, dropout=0.0),  # each rank draws its own
            start_from=None,
            compare_to=None,
            eval_data=None,
            micro_batch_size=self.micro_batch,
            checkpoint_every=STEPS,
            **only_stage,
        )


class TrialFailed(Exception):
    """The processes did not come to the end; the message says what they said last."""


def difference(one: Curve, several: Curve, device: str) -> str | None:
    """In which step, and by how much, two curves differ more than rounding explains; None when they do not."""
    for step, (alone, together) in enumerate(zip(one, several, strict=True), start=1):
        for name, a, b in zip(("loss", "gradient norm"), alone, together, strict=True):
            if not math.isclose(a, b, rel_tol=TOLERANCE[device]):
                return f"{name} {b:.6g} in step {step}, {a:.6g} in one process"
    return None


def save_slice(model: Path, folder: Path) -> None:
    """The first layers of `model`, with its embeddings, head and tokenizer, as a model of its own."""
    config: Any = AutoConfig.from_pretrained(model)
    config.num_hidden_layers = min(LAYERS, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    first = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=dtype, local_files_only=True)
    first.save_pretrained(folder)
    for file in model.iterdir():
        if not file.name.endswith(WEIGHTS) and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)


def first_rows(layout: Layout, source: DataFile, root: Layout, count: int) -> DataFile:
    """The first rows of the data, as a canonical file under the miniature's root."""
    with open(layout.file(source.path), "rb") as f:
        lines = list(islice(f, count))
    content = b"".join(lines)
    digest = hashlib.sha256(content).hexdigest()
    path = root.file(f"{DATA_DIR}/{digest}.jsonl")
    path.parent.mkdir()
    path.write_bytes(content)
    return DataFile(f"{DATA_DIR}/{digest}.jsonl", digest, len(lines))


def last_line(log: Path) -> str:
    lines: Sequence[str] = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "they said nothing")[:300]
