"""A host vanishes: another goes on from what is at home, and the model is the same to the bit."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHome, MakeJob
from home import Home, until

FOR_EVER = 3600.0
TRAINING_S = 480.0
SPEC = {  # 16 and 8 steps
    "sft": "{data: sft.jsonl, lr: 1.0e-3}",
    "dpo": "{data: dpo.jsonl, lr: 1.0e-4}",
    "checkpoint": "{every: 3, keep: 2}",
}
SLOW = {"limits": "{price: 5.00/h, cost: $5.00, time: 1h, line: 4Mbit}"}  # the way home takes some seconds
# Where the host vanishes: the event that comes first, of which stage, and before which of its steps.
MOMENTS = {
    "in SFT": ("checkpoint.home", "SFT", 15),
    "in DPO": ("checkpoint.home", "DPO", 8),
    "in GGUF": ("stage.home", "DPO", 0),
    "in the download": ("download.started", None, 0),
}
RETURNS = pytest.mark.parametrize("returns", [False, True], ids=["for ever", "returns"])


def model(folder: Path) -> dict[str, str]:
    """sha256 of each GGUF and adapter, by the receipt."""
    files = json.loads((folder / "receipt.json").read_text())["files"]
    return {file["path"]: file["sha256"] for file in files if file["path"].endswith((".gguf", ".safetensors"))}


def trained_again(one: Home, job: str) -> list[tuple[str, int]]:
    """(stage, first step) of what the second machine trained. Its own disk is gone at the end."""
    steps = [json.loads(line) for line in one.jobctl("metrics", job, "--json").stdout.splitlines()]
    again = [(step["stage"], step["step"]) for step in steps if step["attempt"] == 2]
    return [(stage, min(step for s, step in again if s == stage)) for stage in ("SFT", "DPO") if stage in dict(again)]


def leases(one: Home, job: str) -> list[dict[str, Any]]:
    return [i for i in one.ledger() if i["label"].split("-")[2] == job]


def wait_for(one: Home, job: str, moment: str) -> None:
    """Until the job is there; in a training, until a step that chance names."""
    kind, stage, last_step = MOMENTS[moment]
    until(lambda: [e for e in one.events(job, kind) if e.get("stage") == stage], f"{kind} {stage}", TRAINING_S)
    if last_step:
        step = random.randrange(last_step)
        print(f"{job} loses its host at step {step} of {stage} or soon after")
        until(lambda: one.job(job)["state"] != stage or one.job(job)["progress"]["done"] >= step, "the step")


def lose(one: Home, job: str, *, returns: bool) -> dict[str, Any]:
    """The host goes offline and the job to another; with `returns` it comes back later. The job when it was LOST."""
    one.fault("offline", seconds=FOR_EVER)
    until(lambda: [e for e in one.events(job, "lease.state") if e["state"] == "LOST"], "the host is given up")
    lost = one.job(job)
    if returns:
        first, _ = until(lambda: (found := leases(one, job))[1:] and found, "another machine")
        one.fault("offline", instance=first["id"], seconds=0.0)
        back = time.time()
        until(lambda: stops(one, first["id"]), "the first is stopped")
        listings = [r for r in one.journal("GET", "/api/v1/instances") if back < r["t"] < stops(one, first["id"])[0]]
        assert len(listings) <= 1, "not stopped in the pass that saw it again"
    return lost


def stops(one: Home, instance: int) -> list[float]:
    """When the market was asked to stop it."""
    return [r["t"] for r in one.journal("PUT", f"/instances/{instance}/") if r["body"] == {"state": "stopped"}]


def assert_ended_well(one: Home, job: str, view: dict[str, Any], same: dict[str, str], *, returns: bool) -> None:
    """The same model; two machines, both gone; the first stopped if it came back, the second never."""
    assert model(Path(view["model_dir"])) == same
    first, second = leases(one, job)
    assert first["destroyed_at"] is not None and second["destroyed_at"] is not None
    assert bool(stops(one, first["id"])) is returns
    assert not stops(one, second["id"])


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """What an uninterrupted run yields, made once."""
    return {}


@pytest.mark.full
@pytest.mark.timeout(4 * TRAINING_S)  # two or three trainings, each with its own limit
@RETURNS
@pytest.mark.parametrize("moment", MOMENTS)
def test_another_machine_goes_on(
    home: MakeHome, job_file: MakeJob, undisturbed: dict[str, str], moment: str, returns: bool
) -> None:
    """The same bytes as without the loss; in a training the second machine goes on where the first was."""
    one = home(real=True, time_scale=120.0)  # a host is given up after fifteen seconds
    one.start()
    if not undisturbed:
        job = one.submit(job_file("same", **SPEC))
        undisturbed |= model(Path(one.reach(job, "DESTROYED", within_s=TRAINING_S)["model_dir"]))
    line = SLOW if moment == "in the download" else {}
    job = one.submit(job_file("same", **SPEC | line), "--again")  # the same text would be the same job
    wait_for(one, job, moment)

    lost = lose(one, job, returns=returns)
    view = one.reach(job, "DESTROYED", within_s=TRAINING_S)

    assert "is here" in lost["safety"]["text"]
    assert_ended_well(one, job, view, undisturbed, returns=returns)
    assert_goes_on(trained_again(one, job), lost["safety"]["text"])


def assert_goes_on(again: list[tuple[str, int]], here: str) -> None:
    """`here` is what `show` said of the copies when the host was given up: nothing of them was trained once more."""
    left = [] if "DPO, finished" in here else ["DPO"] if "DPO" in here or "SFT, finished" in here else ["SFT", "DPO"]
    assert [stage for stage, _ in again] == left
    if step := re.search(r"(?:SFT|DPO) to step (\d+) is here", here):
        assert again[0][1] == int(step[1]) + 1


def recorded_model(recorded: Path) -> dict[str, str]:
    """sha256 of the recorded GGUF and adapter, by their paths in the model folder."""
    files = {
        "quick-Q8_0.gguf": "gguf/Q8_0.gguf",
        "adapter/adapter_model.safetensors": "dpo/adapter/adapter_model.safetensors",
    }
    return {path: hashlib.sha256((recorded / source).read_bytes()).hexdigest() for path, source in files.items()}


@pytest.mark.parametrize(
    ("begun", "returns"),
    [("stage_start.done", False), ("download.started", True)],
    ids=["in training, for ever", "in the download, returns"],
)
def test_a_recorded_run_loses_its_host(
    home: MakeHome, job_file: MakeJob, recorded: Path, begun: str, returns: bool
) -> None:
    """The same without training."""
    one = home(time_scale=200.0)
    one.start()
    job = one.submit(job_file(**SLOW))
    until(lambda: one.events(job, begun), begun)

    lose(one, job, returns=returns)

    assert_ended_well(one, job, one.reach(job, "DESTROYED"), recorded_model(recorded), returns=returns)
