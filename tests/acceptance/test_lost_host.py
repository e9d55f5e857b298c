"""A host vanishes while it trains: another goes on from what is at home, and the model is the same to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHome, MakeJob
from home import Home, until

FOR_EVER = 3600.0
TRAINING_S = 240.0
SPEC = {
    "sft": "{data: sft.jsonl, lr: 1.0e-3, max_steps: 40}",
    "dpo": "{data: dpo.jsonl, lr: 1.0e-4, max_steps: 20}",
    "checkpoint": "{every: 5, keep: 2}",
}
# Where the host vanishes: what has come home by then, and the step that the next machine resumes that stage from.
MOMENTS = {
    "in SFT": ("checkpoint.home", "SFT"),
    "in DPO": ("checkpoint.home", "DPO"),
    "in GGUF": ("stage.home", "DPO"),
}


def model(folder: Path) -> dict[str, str]:
    """sha256 of each GGUF and adapter, by the receipt."""
    files = json.loads((folder / "receipt.json").read_text())["files"]
    return {file["path"]: file["sha256"] for file in files if file["path"].endswith((".gguf", ".safetensors"))}


def resumed(one: Home, lease: int) -> list[dict[str, Any]]:
    """The `resume` events on the box of one instance."""
    events = one.folder / "market" / "instances" / str(lease) / "homeport" / "run" / "events.jsonl"
    return [line for line in map(json.loads, events.read_text().splitlines()) if line["kind"] == "resume"]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """What an uninterrupted run yields, made once."""
    return {}


@pytest.mark.full
@pytest.mark.parametrize("returns", [False, True], ids=["for ever", "returns"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_another_machine_goes_on(
    home: MakeHome, job_file: MakeJob, undisturbed: dict[str, str], moment: str, returns: bool
) -> None:
    """The same bytes as without the loss; two leases, the first stopped when it is seen again, both gone at the end."""
    one = home(real=True, time_scale=120.0)  # a host is given up after fifteen seconds
    one.start()
    if not undisturbed:
        job = one.submit(job_file("same", **SPEC))
        undisturbed |= model(Path(one.reach(job, "DESTROYED", within_s=TRAINING_S)["model_dir"]))
    job = one.submit(job_file("same", **SPEC))
    kind, stage = MOMENTS[moment]
    until(lambda: [e for e in one.events(job, kind) if e["stage"] == stage], f"{kind} {stage}", TRAINING_S)

    fault = one.fault("offline", seconds=FOR_EVER)
    until(lambda: [e for e in one.events(job, "lease.state") if e["state"] == "LOST"], "the host is given up")
    lost = one.job(job)
    if returns:
        one.heal(fault)
        one.fault("offline", seconds=0.0)
    view = one.reach(job, "DESTROYED", within_s=TRAINING_S)

    assert "is here" in lost["safety"]["text"]
    assert model(Path(view["model_dir"])) == undisturbed
    first, second = [i for i in one.ledger() if i["label"].split("-")[2] == job]
    assert second["destroyed_at"] is not None
    assert moment == "in GGUF" or resumed(one, second["id"])[0]["step"] > 0
    if returns:
        assert first["destroyed_at"] is not None
        assert one.journal("PUT", f"/instances/{first['id']}/")
