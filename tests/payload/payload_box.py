"""A box for tests: a folder laid out as on a rented machine, its commands run by the box image's python."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from warm_client import PATIENCE_S, Running, begin, completed

from remote_payload import contract, placement
from remote_payload.contract import (
    DataFile,
    Done,
    Exit,
    Failed,
    Integration,
    JobFile,
    Lora,
    ModelSource,
    Stage,
    StagePlan,
    StageTraining,
)
from remote_payload.layout import Layout
from remote_payload.placement import Placed
from remote_payload.ranks import free_port, rank_environments

REPOSITORY = Path(__file__).resolve().parents[2]
TAG = "V2 FOREX INTEGRATION"


@dataclass
class Box:
    """One image root. Its job can be changed and written again between commands."""

    layout: Layout
    python: Path
    warm: Path
    job: JobFile

    def set(self, **changes: Any) -> None:
        self.job = dataclasses.replace(self.job, **changes)
        self.write_job()

    def write_job(self) -> None:
        contract.write_whole(self.layout.run / contract.JOB_FILE, contract.dump(self.job))

    def environment(self, **more: str) -> dict[str, str]:
        own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**clean, **own, **more}

    def begin(self, module: str, *arguments: str, **environment: str) -> Running:
        """A module of the payload in a child of the warm python, its output in files of the root."""
        return begin(self.warm, module, arguments, self.layout.root, self.environment(**environment))

    def call(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A script of the payload to its end."""
        return completed(self.begin(f"remote_payload.{script}", *arguments, **environment), self.layout.root)

    def evaluate(self, code: str) -> str:
        """What `code` prints, run in the box's root."""
        (self.layout.root / "probe.py").write_text(code)
        ended = self.begin("probe").wait()
        assert ended == 0, (self.layout.root / "stderr").read_text()
        return (self.layout.root / "stdout").read_text()

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python -m remote_payload.run`, a process of its own as the daemon starts it."""
        return subprocess.run(
            [self.python, "-m", "remote_payload.run", *command],
            cwd=self.layout.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def prepare(self) -> None:
        done = self.call("prepare")
        assert done.returncode == Exit.OK, done.stdout + done.stderr

    def train(self, stage: Stage) -> None:
        """Run one stage to its end, without the chain."""
        done = self.call(stage.lower())
        assert done.returncode == Exit.OK, done.stdout + done.stderr

    def start(self, nonce: str, **environment: str) -> dict[str, Any]:
        started = self.run("start", "--nonce", nonce, **environment)
        assert started.returncode == Exit.OK, started.stderr
        return dict(json.loads(started.stdout))

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.run("status").stdout))

    def ended(self) -> str:
        """The phase in which the chain ended, once it has. Looks at its files: a process a look would slow it down."""
        wait_for(lambda: not self.layout.chain.exists(), "the chain's end")
        return str(json.loads(self.layout.status.read_text())["phase"])

    def events(self, kind: str) -> list[dict[str, Any]]:
        if not self.layout.events.exists():
            return []
        lines = [json.loads(line) for line in self.layout.events.read_text().split("\n")[:-1]]  # the whole ones
        return [line for line in lines if line["kind"] == kind]

    def done(self, nonce: str) -> Done:
        return contract.load(Done, (self.layout.markers(nonce) / contract.DONE_FILE).read_bytes())

    def failed(self, nonce: str) -> Failed:
        return contract.load(Failed, (self.layout.markers(nonce) / contract.FAILED_FILE).read_bytes())

    def adapter_hash(self, stage: Stage) -> str:
        return hashlib.sha256((self.layout.adapter(stage) / "adapter_model.safetensors").read_bytes()).hexdigest()

    def kill_chain(self) -> None:
        """kill -9 of the chain and every stage it started."""
        if self.layout.chain.exists():
            pid = json.loads(self.layout.chain.read_text())["pid"]
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                return


def launcher(box: Box, script: str) -> str:
    """A python of the image's that is a shell script, as images may have; `script` decides what it does."""
    path = box.layout.root / "python"
    path.write_text(script.format(python=box.python))
    path.chmod(0o755)
    return str(path)


def warm(box: Box) -> str:
    """A launcher that runs the real stages in the warm python, for tests that kill none of them."""
    client = Path(__file__).with_name("warm_client.py")
    stages = f'case "$*" in *remote_payload.run*) exec {box.python} "$@";; esac; exec {sys.executable} -S {client}'
    return launcher(box, f'#!/bin/sh\n{stages} {box.warm} "$@"\n')


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`; fails the test when none comes in time."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"not within {PATIENCE_S} s: {what}")


def build_box(
    root: Path, python: Path, warm: Path, model: Path, rows: list[Any], pairs: list[Any], **changes: Any
) -> Box:
    """A box with `model`, the rows as uploaded data, and a job of both training stages; `changes` are of the job."""
    (root / contract.RUN_DIR).mkdir(parents=True)
    (root / contract.MODEL_DIR).symlink_to(model)
    job = JobFile(
        job="j00001",
        attempt=1,
        name="tiny",
        model=ModelSource("tiny"),
        stages=[StagePlan(Stage.SFT, "nonce-sft"), StagePlan(Stage.DPO, "nonce-dpo")],
        integration=Integration(TAG, len(rows), len(pairs)),
        lora=Lora(r=4, alpha=8, dropout=0.05),
        gguf=["Q8_0"],
        sft_data=write_rows(root, rows),
        dpo_data=write_rows(root, pairs),
        sft=StageTraining(epochs=2, lr=1e-3),
        dpo=StageTraining(epochs=2, lr=1e-3),
        batch_size=4,
        micro_batch_size=2,
        max_length=128,
        checkpoint_every=3,
        checkpoint_keep=2,
    )
    box = Box(Layout(root), python, warm, dataclasses.replace(job, **changes))
    box.write_job()
    return box


# What does not depend on who computes it: dropout draws other numbers on every rank, packing adds up other groups.
SAME_ANYWHERE: dict[str, Any] = {"placement": "ddp", "speed": "plain", "lora": Lora(r=4, alpha=8)}


def ready(make_box: Callable[..., Box], trained: Box, stage: Stage, **changes: Any) -> Box:
    """A box that has been through everything before `stage`, as `trained` went."""
    box = make_box(**changes)
    shutil.copy(trained.layout.prepared, box.layout.prepared)
    if stage is Stage.DPO:
        shutil.copytree(trained.layout.adapter(Stage.SFT), box.layout.adapter(Stage.SFT))
    return box


def before(make_box: Callable[..., Box], alone: Box, stage: Stage, processes: int, **changes: Any) -> Box:
    """A box that stands before `stage`, to run in so many processes; `alone` went through what comes before it."""
    box = make_box(**SAME_ANYWHERE | changes)
    box.layout.prepared.write_bytes(alone.layout.prepared.read_bytes())
    placement.decide(box.layout, box.job, Placed("ddp", processes))
    if stage is Stage.DPO:
        shutil.copytree(alone.layout.adapter(Stage.SFT), box.layout.adapter(Stage.SFT))
    return box


def begin_ranks(box: Box, stage: Stage, processes: int, module: str | None = None) -> list[Running]:
    """The processes of `stage`, started as the chain starts them; `module` stands for the stage's own script."""
    places = rank_environments(processes, free_port(), {}) if processes > 1 else [{}]
    return [box.begin(module or f"remote_payload.{stage.lower()}", **place) for place in places]


def write_rows(root: Path, rows: list[Any]) -> DataFile:
    """`rows` as a canonical file under data/; a row that is a string is written as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = "".join(f"{line}\n" for line in lines).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    path = f"{contract.DATA_DIR}/{sha256}.jsonl"
    (root / contract.DATA_DIR).mkdir(exist_ok=True)
    (root / path).write_bytes(content)
    return DataFile(path, sha256, len(rows))


def sft_rows(n: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What did one euro cost on day {i}?"},
                {"role": "assistant", "content": f"It cost {100 + i % 40} units" + " and rose" * (i % 5)},
            ]
        }
        for i in range(n)
    ]


def dpo_rows(n: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Did the rate rise on day {i}?"}],
            "chosen": [{"role": "assistant", "content": f"It rose to {100 + i % 40}." + " Yes." * (i % 3)}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
        for i in range(n)
    ]
