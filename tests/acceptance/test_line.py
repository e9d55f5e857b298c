"""The whole line, from submit to destroyed, from the installed wheel, through jobctl alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from canaries import Canaries, rows_in
from conftest import MakeHome, MakeJob

TRAINING_S = 400.0


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
    """One machine, destroyed after the receipt and not before; a model that is whole; a receipt that says so; and no
    secret anywhere but in its own place."""
    one = home(real=real)
    planted = Canaries.plant(one)
    one.start()

    spec = job_file()
    job = one.submit(spec)
    view = one.reach(job, "DESTROYED", within_s=TRAINING_S)
    planted.stop()
    assert planted.found(job) == [] and planted.looks > 10
    assert rows_in(one.folder / "bundle.zip", spec.parent / "sft.jsonl") == []

    (instance,) = one.ledger()
    stored = one.events(job, "receipt.stored")[0]["at"]
    deletes = one.journal("DELETE", "/instances/")
    assert instance["destroyed_at"] * 1000 >= stored
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
