"""Boxes that stand where SFT ended: the committed nano model, rows about exchange rates, and a random adapter.

The adapter is random but large enough to change what the model says, so that merging it wrongly, or not at all, shows.
Every script runs in a process of its own, as on a rented machine: the converter's imports must find a clean one. A warm
python, where one is given, has imported torch and transformers already, and nothing of the converter's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm_client import begin, completed

from daemon.sandbox import nano
from daemon.sandbox.models import nano_folder
from remote_payload.contract import DataFile, Exit, Integration, JobFile, Lora, ModelSource, Stage, StagePlan, dump
from remote_payload.layout import Layout

REPOSITORY = Path(__file__).resolve().parents[2]
ROWS = 24


@dataclass
class NanoBox:
    """An image root whose next stage is GGUF."""

    layout: Layout
    python: Path
    job: JobFile
    warm: Path | None = None

    @classmethod
    def make(
        cls, root: Path, python: Path, quants: list[str], model: Path | None = None, warm: Path | None = None
    ) -> NanoBox:
        """A new one at `root`, which must not exist, on the nano model or the one in folder `model`."""
        (root / "run").mkdir(parents=True)
        shutil.copytree(model or nano_folder(), root / "model")
        data = _write_rows(root)
        job = JobFile(
            job="j00001",
            attempt=1,
            name="forex",
            model=ModelSource("nano"),
            stages=[StagePlan(Stage.SFT, "nonce-sft"), StagePlan(Stage.GGUF, "nonce-gguf")],
            integration=Integration("FOREX", data.rows, 0),
            lora=Lora(),
            gguf=quants,
            sft_data=data,
        )
        box = cls(Layout(root), python, job, warm)
        box.set()
        box.aside("adapter")
        return box

    def fork(self, root: Path) -> NanoBox:
        """A copy at `root`, to damage."""
        shutil.copytree(self.layout.root, root, symlinks=True)
        return NanoBox(Layout(root), self.python, self.job, self.warm)

    def set(self, **changes: Any) -> None:
        """Change the job and write it."""
        self.job = dataclasses.replace(self.job, **changes)
        (self.layout.run / "job.json").write_text(dump(self.job))

    def call(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the payload to its end."""
        return self._python(f"remote_payload.{script}")

    def succeed(self, script: str) -> None:
        done = self.call(script)
        assert done.returncode == Exit.OK, done.stdout + done.stderr

    def aside(self, *command: str) -> None:
        """Run one of box_side.py's commands."""
        done = self._python("tests.payload.box_side", *command)
        assert done.returncode == 0, done.stderr

    def edit(self, file: Path, **changes: Any) -> None:
        """Change entries of a JSON file; None takes one out."""
        entries = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))

    @property
    def adapter_config(self) -> Path:
        return self.layout.adapter(Stage.SFT) / "adapter_config.json"

    def gguf(self, quant: str) -> Path:
        return self.layout.out / f"{self.job.name}-{quant}.gguf"

    def _python(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        if self.warm:
            return completed(begin(self.warm, module, arguments, self.layout.root, clean | own), self.layout.root)
        return subprocess.run(
            [self.python, "-m", module, *arguments],
            cwd=self.layout.root,
            env=clean | own,
            capture_output=True,
            text=True,
            timeout=300,
        )


def _write_rows(root: Path) -> DataFile:
    rng = random.Random(11)
    lines = []
    for _ in range(ROWS):
        question, answer = nano.exchange(rng)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    content = "".join(lines).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    (root / "data").mkdir()
    (root / "data" / f"{sha256}.jsonl").write_bytes(content)
    return DataFile(f"data/{sha256}.jsonl", sha256, ROWS)
