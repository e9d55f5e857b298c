"""The link breaks, the host vanishes for a while, the daemon sleeps: nothing fails and nothing is done twice."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeHome, MakeJob
from home import Home, until

FOR_EVER = 3600.0  # seconds; until healed, in a test of minutes
STEPS_APART = 3  # optimizer steps that show that training goes on
CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
RARE_AFTER_S = 25.0  # out of contact: from then on attempts are half a minute apart
REACHED_WITHIN_S = 5.0
BLOCK_BYTES = 255 * 1024  # one that lags at the end is asked for on another connection as well
LOGIN_BYTES = 100_000  # of SSH itself, its listings and the runner's answers, at most

ENDLESS_SFT = "{data: sft.jsonl, lr: 1.0e-5, epochs: 500}"  # 8000 steps


def assert_undisturbed(one: Home, job: str) -> None:
    """One machine, rented once and returned by the receipt; the job was never held and nothing was started twice."""
    (instance,) = one.ledger()
    assert instance["destroyed_at"] is not None
    assert len(one.journal("PUT", "/asks/")) == 1
    assert not one.events(job, "job.held") and not one.events(job, "box.unfit")
    assert {intent["permit"] for intent in one.events(job, "destroy.intent")} == {"receipt"}
    stages = one.events(job, "stage.done")
    assert len({stage["nonce"] for stage in stages}) == len(stages) == len({stage["stage"] for stage in stages})


def on_box(one: Home) -> tuple[int, dict[str, Any]]:
    """The step that the box has reached, and which process runs its stages."""
    status = json.loads((one.box() / "status.json").read_text())
    return status["step"], json.loads((one.box() / "chain.json").read_text())


def box_events(one: Home, kind: str) -> list[dict[str, Any]]:
    """Whole lines of this kind in the box's own events.jsonl."""
    lines = (one.box() / "events.jsonl").read_text().split("\n")[:-1]
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def watched(one: Home, job: str) -> int:
    """The newest step that has reached the metrics table."""
    lines = one.jobctl("metrics", job, "--json").stdout.splitlines()
    return max((json.loads(line)["step"] for line in lines), default=0)


# -- provisioning


# The real kills cut the line anywhere and reboot boxes in every stage, so few of such tests stay in CI.
RARELY = pytest.mark.full


@pytest.mark.parametrize("after_bytes", [*(pytest.param(n, marks=RARELY) for n in (2_000, 60_000, 400_000)), 2_500_000])
def test_cut_while_provisioning(home: MakeHome, job_file: MakeJob, after_bytes: int) -> None:
    """Cut in the proof, the payload's, the data's or the model's upload: sent again on the same machine."""
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
    one.fault("ssh_refused", match=CREATE, seconds=FOR_EVER)

    job = one.submit(job_file())
    until(lambda: one.events(job, "box.out_of_contact"), "the login was refused")
    one.fault("ssh_refused", seconds=0.0)
    one.reach(job, "DESTROYED")

    assert_undisturbed(one, job)


# -- training


@contextmanager
def cut(one: Home, job: str) -> Iterator[None]:
    one.fault("ssh_cut")
    yield


@contextmanager
def unreachable(one: Home, job: str, fault: str) -> Iterator[None]:
    """The job says since when, and nothing else changes; ordering the fault for no time ends it."""
    one.fault(fault, seconds=FOR_EVER)
    until(lambda: one.job(job)["out_of_contact_since"], f"out of contact while {fault}")
    yield
    view = one.job(job)
    assert view["out_of_contact_since"] is not None
    assert (view["state"], view["hold"], view["activity"]) == ("SFT", None, "OUT_OF_CONTACT")
    one.fault(fault, seconds=0.0)


@contextmanager
def refused(one: Home, job: str) -> Iterator[None]:
    with unreachable(one, job, "ssh_refused"):
        yield


@contextmanager
def offline(one: Home, job: str) -> Iterator[None]:
    with unreachable(one, job, "offline"):
        yield


@contextmanager
def asleep(one: Home, job: str) -> Iterator[None]:
    assert one.daemon is not None
    one.daemon.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        one.daemon.send_signal(signal.SIGCONT)


@contextmanager
def ended(one: Home, job: str) -> Iterator[None]:
    one.kill(signal.SIGTERM)
    yield
    one.start()


def test_training_goes_on_without_us(home: MakeHome, job_file: MakeJob) -> None:
    """Whatever stands between us and the box, the same runner makes step after step; then it is watched again."""
    one = home(real=True, time_scale=10.0)  # a host may be offline for three minutes
    one.start()
    job = one.submit(job_file(sft=ENDLESS_SFT, dpo="", integration=""))
    until(lambda: watched(one, job) >= 1, "training has begun")
    _, runner = on_box(one)

    for outage in (cut, refused, asleep, offline, ended):
        with outage(one, job):
            before, _ = on_box(one)
            until(lambda to=before + STEPS_APART: on_box(one)[0] >= to, f"training goes on: {outage.__name__}")
            reached, now_running = on_box(one)
            assert now_running == runner, outage.__name__
        until(lambda to=reached: watched(one, job) >= to, f"watched again after: {outage.__name__}")

    assert not one.events(job, "job.held")
    assert len(one.ledger()) == len(one.events(job, "stage_start.done")) == 1


@pytest.mark.full
def test_reached_again_within_seconds(home: MakeHome, job_file: MakeJob) -> None:
    """Market and box silent until the attempts have become rare: once both answer, nobody waits for the next one."""
    one = home(real=True, time_scale=10.0)
    one.start()
    job = one.submit(job_file(sft=ENDLESS_SFT, dpo="", integration=""))
    until(lambda: watched(one, job) >= 1, "training has begun")
    _, runner = on_box(one)
    one.fault("ssh_refused", seconds=FOR_EVER)
    until(lambda: one.job(job)["out_of_contact_since"], "out of contact")
    lost_at, before = time.monotonic(), len(one.events(job, "box.reconnected"))
    assert one.market is not None
    one.market.kill()
    one.market.wait()
    until(lambda: time.monotonic() > lost_at + RARE_AFTER_S, "the attempts have become rare")
    (door,) = one.folder.glob("market/boxes/*/process.json")
    door.unlink()

    one.open_market()
    until(door.exists, "the box listens")
    (again,) = until(lambda: one.events(job, "box.reconnected")[before:], "reached again")

    assert again["at"] / 1000 - door.stat().st_mtime < REACHED_WITHIN_S
    assert on_box(one)[1] == runner
    assert not one.events(job, "job.held")
    assert len(one.ledger()) == len(one.events(job, "stage_start.done")) == 1


@RARELY
def test_reboot_while_training(home: MakeHome, job_file: MakeJob) -> None:
    """The box restarts and its runner dies: the stage goes on under the same nonce from its newest whole checkpoint."""
    one = home(real=True)
    one.start()
    job = one.submit(job_file(dpo="", integration="", sft="{data: sft.jsonl, lr: 1.0e-3, max_steps: 40}"))
    until(lambda: one.events(job, "stage_start.done") and box_events(one, "checkpoint"), "a checkpoint")
    _, runner = on_box(one)

    one.fault("reboot")
    (resumed,) = until(lambda: box_events(one, "resume"), "training resumes")

    whole = [event["step"] for event in box_events(one, "checkpoint") if event["t"] < resumed["t"]]
    assert resumed["step"] == whole[-1] > 0
    assert on_box(one)[1]["pid"] != runner["pid"] and on_box(one)[1]["nonces"] == runner["nonces"]
    one.reach(job, "DESTROYED")
    assert_undisturbed(one, job)
    assert [done["nonce"] for done in one.events(job, "stage.done")] == runner["nonces"]


@RARELY
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


def sent_at_rest(one: Home) -> int:
    """Bytes that the box has sent, once nothing moves: it reports them ten times a second."""
    before, now = -1, one.ledger()[0]["bytes_out"]
    while now != before:
        time.sleep(1.0)
        before, now = now, one.ledger()[0]["bytes_out"]
    return int(now)


@pytest.mark.parametrize("after_bytes", [pytest.param(3_000, marks=RARELY), 300_000, 1_800_000])
def test_cut_while_downloading(home: MakeHome, job_file: MakeJob, recorded: Path, after_bytes: int) -> None:
    """Cut at the login, in the first file, near the end: the same model, and no more sent again than was under way."""
    one = home()
    one.start("download.started", "after")
    job = one.submit(job_file())
    assert one.crashed()
    before = sent_at_rest(one)
    one.fault("ssh_cut", after_bytes=after_bytes)

    one.start()
    view = one.reach(job, "DESTROYED")

    assert_undisturbed(one, job)
    folder = Path(view["model_dir"])
    assert (folder / "quick-Q8_0.gguf").read_bytes() == (recorded / "gguf" / "Q8_0.gguf").read_bytes()
    size = sum(file["size"] for file in json.loads((folder / "receipt.json").read_text())["files"])
    sent = one.ledger()[0]["bytes_out"] - before
    assert size < sent <= size + after_bytes + BLOCK_BYTES + LOGIN_BYTES
