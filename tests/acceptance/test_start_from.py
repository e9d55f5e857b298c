"""A second job goes on with the adapter that the first one brought home."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from conftest import MakeHome, MakeJob

TRAINING_S = 900.0
WEIGHTS = "adapter_model.safetensors"
SHORT = {"sft": "{data: sft.jsonl, lr: 0.002, max_steps: 2}", "dpo": "", "integration": ""}


@pytest.mark.full
def test_a_job_goes_on_with_the_last_one(home: MakeHome, job_file: MakeJob) -> None:
    """The machine gets the very adapter of the earlier job, trains from it, and the new model is verified like any."""
    one = home(real=True)
    one.start()
    first = one.reach(one.submit(job_file("first", **SHORT)), "DESTROYED", within_s=TRAINING_S)
    sha256 = hashlib.sha256((Path(first["model_dir"]) / "adapter" / WEIGHTS).read_bytes()).hexdigest()
    other = job_file("other", start_from="first", **SHORT | {"lora": "{r: 2, alpha: 2}"})

    told = one.jobctl("submit", "-y", str(other), check=2)
    job = one.submit(job_file("second", start_from="first", **SHORT))
    one.reach(job, "SFT", "GGUF", within_s=TRAINING_S)
    brought = (one.box().parent / "adapters" / sha256 / WEIGHTS).read_bytes()
    second = one.reach(job, "DESTROYED", within_s=TRAINING_S)

    assert "write lora: {r:" in told.stderr
    assert hashlib.sha256(brought).hexdigest() == sha256
    ours = (Path(second["model_dir"]) / "adapter" / WEIGHTS).read_bytes()
    assert len(ours) == len(brought)
    assert ours != brought
