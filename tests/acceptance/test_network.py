"""The link breaks, the host vanishes for a while, the daemon sleeps: nothing fails and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import MakeHome, MakeJob
from home import Home, until

CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
LOGIN_BYTES = 100_000  # of SSH itself, its listings and the runner's answers, at most


def assert_undisturbed(one: Home, job: str) -> None:
    """One machine, rented once and returned by the receipt; the job was never held and nothing was started twice."""
    (instance,) = one.ledger()
    assert instance["destroyed_at"] is not None
    assert len(one.journal("PUT", "/asks/")) == 1
    assert not one.events(job, "job.held") and not one.events(job, "box.unfit")
    assert {intent["permit"] for intent in one.events(job, "destroy.intent")} == {"receipt"}
    stages = one.events(job, "stage.done")
    assert len({stage["nonce"] for stage in stages}) == len(stages) == len({stage["stage"] for stage in stages})


# -- provisioning


@pytest.mark.parametrize("after_bytes", [2_000, 60_000, 400_000])
def test_cut_while_provisioning(home: MakeHome, job_file: MakeJob, after_bytes: int) -> None:
    """Cut in the proof, the payload's or the model's upload: sent again on the same machine."""
    one = home()
    one.start()
    one.fault("ssh_cut", match=CREATE, after_bytes=after_bytes)
    job = one.submit(job_file())

    one.reach(job, "DESTROYED")

    assert one.events(job, "box.out_of_contact")
    assert_undisturbed(one, job)


def test_refused_at_first(home: MakeHome, job_file: MakeJob) -> None:
    """A machine whose sshd comes late is waited for, not returned."""
    one = home()
    one.start()
    one.fault("ssh_refused", match=CREATE, seconds=6.0)

    job = one.submit(job_file())
    until(lambda: one.events(job, "box.out_of_contact"), "the login was refused")
    one.reach(job, "DESTROYED")

    assert_undisturbed(one, job)


# -- training


@pytest.mark.parametrize("stage", ["SFT", "DPO", "GGUF"])
def test_reboot_in_each_stage(home: MakeHome, job_file: MakeJob, stage: str) -> None:
    """The box restarts as soon as a stage has been started: the chain is started again, whatever it was doing."""
    one = home()
    one.start()
    job = one.submit(job_file())
    until(lambda: one.job(job)["state"] == stage, f"{stage} has begun")

    one.fault("reboot")
    one.reach(job, "DESTROYED")

    assert_undisturbed(one, job)


# -- the way home


@pytest.mark.parametrize("after_bytes", [3_000, 300_000, 1_800_000])
def test_cut_while_downloading(home: MakeHome, job_file: MakeJob, recorded: Path, after_bytes: int) -> None:
    """Cut at the login, in the first file, near the end: the same model, and no more sent again than was under way."""
    one = home()
    one.start("download.started", "after")
    job = one.submit(job_file())
    assert one.crashed()
    before = one.ledger()[0]["bytes_out"]
    one.fault("ssh_cut", after_bytes=after_bytes)

    one.start()
    view = one.reach(job, "DESTROYED")

    assert_undisturbed(one, job)
    folder = Path(view["model_dir"])
    assert (folder / "quick-Q8_0.gguf").read_bytes() == (recorded / "gguf" / "Q8_0.gguf").read_bytes()
    size = sum(file["size"] for file in json.loads((folder / "receipt.json").read_text())["files"])
    sent = one.ledger()[0]["bytes_out"] - before
    assert size < sent <= size + after_bytes + LOGIN_BYTES
