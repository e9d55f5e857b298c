"""The whole line, from submit to destroyed, from the installed wheel, through jobctl alone."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from canaries import Canaries, rows_in
from conftest import MakeHome, MakeJob

TRAINING_S = 400.0
TOO_LONG = "a-home-too-deep-for-a-unix-socket-" * 3  # so the API is on a port, and has a token
SECRETS = {"HF_TOKEN", "WANDB_API_KEY", "topic", "market key", "SSH key", "API token", "instance key"}


def checked_sums(folder: Path) -> int:
    """Files whose SHA256SUMS line is right; asserts each."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    return len(lines)


# `test_demo.py` and `test_real_crash.py` train nano for real in `make test`.
@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.full)], ids=["replay", "nano"])
def test_from_submit_to_destroyed(home: MakeHome, job_file: MakeJob, real: bool) -> None:
    """One machine, destroyed after the receipt and the person's word and not before; a model that is whole; a receipt
    that says so; and no secret anywhere but in its own place, also on the machine while there is one."""
    one = home(real=real, name="home" if real else TOO_LONG)
    planted = Canaries.plant(one)
    one.start()

    spec = job_file(destroy="ask")
    job = one.submit(spec)
    assert one.reach(job, "HELD", within_s=TRAINING_S)["hold"]["reason"] == "ASK_DESTROY"
    assert planted.values.keys() >= SECRETS - ({"API token"} if real else set())
    assert planted.found(job) == []
    spilt = one.box() / "spilt"
    spilt.write_text(f"export HF_TOKEN={planted.values['HF_TOKEN']}\n")
    assert planted.found(job) == [f"HF_TOKEN in {spilt.relative_to(one.folder)}"]
    spilt.unlink()

    accepted = time.time()
    one.jobctl("resume", job)
    view = one.reach(job, "DESTROYED")
    planted.stop()
    assert planted.found(job) == [] and planted.looks > 10
    assert rows_in(one.folder / "bundle.zip", spec.parent / "sft.jsonl") == []

    (instance,) = one.ledger()
    stored = one.events(job, "receipt.stored")[0]["at"]
    deletes = one.journal("DELETE", "/instances/")
    assert instance["destroyed_at"] * 1000 >= stored and instance["destroyed_at"] >= accepted
    assert deletes and all(request["t"] * 1000 >= stored for request in deletes)
    assert len(one.journal("PUT", "/asks/")) == 1
    folder = Path(view["model_dir"])
    receipt = json.loads((folder / "receipt.json").read_text())
    assert [level["passed"] for level in receipt["levels"]] == [True] * 6
    assert checked_sums(folder) >= 8
    assert (folder / "quick-Q8_0.gguf").stat().st_size > 1_000_000
    assert one.events(job, "job.moved")[-1]["to"] == "DESTROYED"
    steps = [json.loads(line) for line in one.jobctl("metrics", job, "--json").stdout.splitlines()]
    assert {"SFT", "DPO"} == {step["stage"] for step in steps} and len(steps) > 10


def test_cost_is_the_markets(home: MakeHome, job_file: MakeJob) -> None:
    """What we say it cost is the ledger's cost, never less than it by more than a hundredth."""
    one = home()
    one.start()

    view = one.reach(one.submit(job_file()), "DESTROYED")

    (instance,) = one.ledger()
    ours, theirs = float(view["cost"]), float(instance["cost_usd"])
    assert theirs * 0.99 <= ours <= theirs * 1.5 + 0.02
