"""`kill -9` at every boundary of the line: the same end, the same model, one machine.

Here before each boundary in one life, and, when there is time, before and after each in a life of its own. After each
in one life, with real training: test_real_crash.py.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import MakeHome, MakeJob
from home import Home

# Every commit that a job's straight line makes, by the event it writes; (event, which one).
BOUNDARIES = [
    ("job.submitted", 1),
    ("create.intent", 1),
    ("create.sent", 1),
    ("create.done", 1),
    ("lease.status", 1),
    ("box.proven", 1),
    ("box.prepared", 1),
    ("stage_start.intent", 1),
    ("stage_start.sent", 1),
    ("stage_start.done", 1),
    ("stage.done", 1),
    ("stage_start.intent", 2),
    ("stage_start.done", 2),
    ("stage.done", 2),
    ("stage_start.sent", 3),
    ("stage_start.done", 3),
    ("stage.done", 3),
    ("manifest.stored", 1),
    ("download.started", 1),
    ("job.moved", 5),  # DOWNLOADED
    ("verify.report", 1),
    ("receipt.stored", 1),  # VERIFIED
    ("destroy.intent", 1),
    ("destroy.sent", 1),
    ("destroy.done", 1),
    ("lease.state", 1),
    ("job.moved", 7),  # DESTROYED
]


def model_hash(view: dict[str, str]) -> str:
    return hashlib.sha256((Path(view["model_dir"]) / "quick-Q8_0.gguf").read_bytes()).hexdigest()


def submitted(one: Home, job_file: Path) -> str:
    """Submit; the daemon may die while it answers, then the person types it again."""
    one.jobctl("submit", "-y", str(job_file), check=None)
    assert one.crashed()
    one.start()
    return one.submit(job_file)


@pytest.fixture(scope="module")
def undisturbed(recorded: Path) -> str:
    """The hash of the recorded model: what every run must end with."""
    return hashlib.sha256((recorded / "gguf" / "Q8_0.gguf").read_bytes()).hexdigest()


def assert_same_end(one: Home, view: dict[str, str], model: str) -> None:
    """One create on the wire, one machine, asked to go after the receipt and gone; the model that was recorded."""
    (instance,) = one.ledger()
    assert instance["destroyed_at"] is not None
    assert len(one.journal("PUT", "/asks/")) == 1
    assert model_hash(view) == model
    stored = one.events(view["id"], "receipt.stored")[0]["at"]
    assert all(request["t"] * 1000 >= stored for request in one.journal("DELETE", "/instances/"))


def test_killed_before_every_boundary_in_turn(home: MakeHome, job_file: MakeJob, undisturbed: str) -> None:
    """The commit of each event is lost once, and what led to it is done again."""
    one, job = home(), ""
    for event, _ in BOUNDARIES:
        one.start(event, "before")
        if not job:
            one.jobctl("submit", "-y", str(job_file()), check=None)
        assert one.crashed(), event
        job = job or next((each["id"] for each in stored_jobs(one)), "")
    one.start()

    assert_same_end(one, one.reach(job, "DESTROYED"), undisturbed)


def stored_jobs(one: Home) -> list[dict[str, str]]:
    """Those in the database of a daemon that is dead."""
    jobs: list[dict[str, str]] = json.loads(one.jobctl("status", "--json", check=4).stdout)["jobs"]
    return jobs


@pytest.mark.full
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("event", "nth"), BOUNDARIES, ids=[f"{event}-{nth}" for event, nth in BOUNDARIES])
def test_killed_at_a_boundary(
    home: MakeHome, job_file: MakeJob, undisturbed: str, event: str, nth: int, when: str
) -> None:
    one = home()
    one.start(event, when, str(nth))

    job = submitted(one, job_file())

    assert_same_end(one, one.reach(job, "DESTROYED"), undisturbed)
