"""Nothing is trained on the wrong data or on a broken machine; whatever was rented for it goes back unused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeJob, write_job
from home import Home, until
from hostile_box import UNFIT, launcher

# What happens on the box, called like the job: the hold it leads to, and what that says.
ON_THE_BOX = {
    "announced": ("INTEGRATION", "64 SFT rows read, 65 announced"),
    "no-line": ("INTEGRATION", "printed none"),
    "wrong-line": ("INTEGRATION", "forged"),
    "other-counts": ("INTEGRATION", "from 1 SFT and 1 DPO rows"),
    "lost-row": ("DATA", "sha256 differs"),
    "bad-row": ("DATA", ":3:"),
}


@pytest.fixture(scope="module")
def gate(installed: Path, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose boxes do what the job's name says; preflight fails on as many as `unfit` beside it says."""
    folder = tmp_path_factory.mktemp("gate")
    home = Home(folder / "home", installed, "homeport/replay", launcher(folder, installed / "python"))
    home.open_market()
    home.start()
    for name in ON_THE_BOX:
        home.submit(write_job(recorded, folder, name))
    yield home
    home.close()


def machines(gate: Home, job: str) -> list[dict[str, Any]]:
    """What the market says it let to this job."""
    return [instance for instance in gate.ledger() if f"-{job}-" in instance["label"]]


def returned_unused(gate: Home, job: str) -> int:
    """Wait until all machines of the job are gone, as unused, with no stage ever started on one. How many it were."""
    until(lambda: all(machine["destroyed_at"] for machine in machines(gate, job)), "the machines go back")
    assert {destroy["permit"] for destroy in gate.events(job, "destroy.intent")} == {"unused"}
    assert not gate.events(job, "stage_start")
    return len(machines(gate, job))


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ("{tag: quick, sft_rows: 9, dpo_rows: 24}", "integration.sft_rows: 9 expected"),
        ("{tag: quick, sft_rows: 64, dpo_rows: 9}", "integration.dpo_rows: 9 expected"),
    ],
    ids=["sft", "dpo"],
)
def test_counts_that_differ_from_the_data_are_refused_at_submit(
    gate: Home, job_file: MakeJob, counts: str, said: str
) -> None:
    """Exit 2 and the two numbers; no job, no machine."""
    refused = gate.jobctl("submit", "-y", str(job_file("counted", integration=counts)), check=2)
    assert said in refused.stderr
    gate.jobctl("show", "counted", check=3)
    known = {job["id"] for job in json.loads(gate.jobctl("status", "--json").stdout)["jobs"]}
    assert {instance["label"].split("-")[2] for instance in gate.ledger()} <= known  # theirs may just be rented


@pytest.mark.parametrize("name", ON_THE_BOX)
def test_what_the_box_read_is_not_what_was_sent(gate: Home, name: str) -> None:
    """HELD with the reason before any stage starts, and the machine goes back at once."""
    reason, said = ON_THE_BOX[name]
    view = gate.reach(name, "HELD")
    assert (view["state"], view["hold"]["reason"]) == ("QUEUED", reason)
    assert said in view["hold"]["detail"]
    assert returned_unused(gate, view["id"]) == 1


def test_one_bad_host_is_replaced(gate: Home, recorded: Path, tmp_path: Path) -> None:
    """A machine that fails its preflight goes back, another one is rented, and the job never knows."""
    (gate.python.parent / UNFIT).write_text("1")
    job = gate.submit(write_job(recorded, tmp_path, "second-host"))
    gate.reach(job, "DESTROYED")
    assert {destroy["permit"] for destroy in gate.events(job, "destroy.intent")} == {"unused", "receipt"}
    assert len(machines(gate, job)) == 2
    assert "wrong product" in gate.events(job, "box.unfit")[0]["why"]


def test_three_bad_hosts_hold_the_job(gate: Home, recorded: Path, tmp_path: Path) -> None:
    """The third machine that fails ends the trying: HELD, all three gone, until the person says resume."""
    (gate.python.parent / UNFIT).write_text("3")
    job = gate.submit(write_job(recorded, tmp_path, "no-host"))
    view = gate.reach(job, "HELD")
    assert view["hold"]["reason"] == "PROVISIONING"
    assert returned_unused(gate, job) == 3
    gate.jobctl("resume", job)
    gate.reach(job, "DESTROYED")
    assert len(machines(gate, job)) == 4
