"""Every verb against running jobs: exit code, what the market did, and by which permit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeJob
from home import Home, until
from hostile_box import GO, launcher


@pytest.fixture(scope="module")
def desk(installed: Path, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One home for all verbs; the DPO of some jobs dawdles until `go`."""
    folder = tmp_path_factory.mktemp("desk")
    home = Home(folder / "home", installed, "homeport/replay", launcher(folder, installed / "python"))
    home.open_market()
    home.start()
    yield home
    home.close()


def go(desk: Home, name: str) -> None:
    (desk.python.parent / f"{GO}{name}").touch()


def instance(desk: Home, job: str) -> dict[str, Any]:
    """The one machine that the market let to this job."""
    (found,) = [one for one in desk.ledger() if f"-{job}-" in one["label"]]
    return found


def permits(desk: Home, job: str) -> set[str]:
    """What permitted the destroys of this job; one that is not confirmed soon is sent again."""
    return {str(intent["permit"]) for intent in desk.events(job, "destroy.intent")}


def in_dpo(desk: Home, job_file: MakeJob, name: str, **changes: str) -> str:
    """Submit a job whose DPO dawdles, and wait until it does."""
    job = desk.submit(job_file(name, **changes))
    until(lambda: len(desk.events(job, "stage.done")) == 1, "SFT is done")
    return job


def test_hold_and_resume(desk: Home, job_file: MakeJob) -> None:
    """A hold saves what is finished and keeps the machine; resume lets the very same machine bring the model home."""
    job = in_dpo(desk, job_file, "steered")

    desk.jobctl("hold", job)
    view = desk.reach(job, "HELD")
    assert view["hold"]["reason"] == "BY_PERSON"
    until(lambda: desk.events(job, "job.saved"), "the SFT adapter is saved")
    saved = desk.folder / "models" / f".rescue-{job}"
    assert list(saved.rglob("adapter_model.safetensors"))
    desk.jobctl("wait", job, check=11)

    desk.jobctl("resume", job)
    desk.jobctl("resume", job, check=1)
    desk.jobctl("accept", job, check=1)
    desk.jobctl("wait", job, "--timeout", "1s", check=7)
    go(desk, "steered")
    desk.jobctl("wait", job, "--for", "DESTROYED")
    assert permits(desk, job) == {"receipt"}
    for verb in ("hold", "resume", "retry", "cancel"):
        desk.jobctl(verb, job, check=1)


def test_cancel_before_anything_was_rented(desk: Home, job_file: MakeJob) -> None:
    """A job that no offer fits ends at once: CANCELLED, wait says 9, the market never heard of it."""
    job = desk.submit(job_file("unfitting", limits="{price: 0.01/h, cost: $5.00, time: 1h}"))
    until(lambda: desk.events(job, "market.nothing_fits"), "the market was searched")

    desk.jobctl("cancel", job)
    desk.jobctl("wait", job, check=9)
    assert desk.job(job)["state"] == "CANCELLED"
    assert not desk.events(job, "create.")


def test_cancel_before_any_work(desk: Home, job_file: MakeJob) -> None:
    """With a machine on which nothing was started, cancel returns it as unused."""
    job = desk.submit(job_file("prepares-long"))
    until(lambda: desk.events(job, "box.proven"), "the machine is reached")

    desk.jobctl("cancel", job)
    desk.jobctl("wait", job, check=9)
    assert permits(desk, job) == {"unused"}
    assert instance(desk, job)["destroyed_at"] is not None


def test_cancel_saves_and_discard_asks(desk: Home, job_file: MakeJob) -> None:
    """Cancel with outputs holds and saves them; only --discard with the right id lets the machine go."""
    job = in_dpo(desk, job_file, "cancelled")

    desk.jobctl("cancel", job)
    view = desk.reach(job, "HELD")
    assert view["hold"]["reason"] == "CANCEL_WISH"
    until(lambda: desk.events(job, "job.saved"), "the SFT adapter is saved")
    machine = instance(desk, job)["id"]
    desk.jobctl("cancel", job, "--discard", check=2)
    desk.jobctl("cancel", job, "--discard", "--confirm", str(machine + 1), check=1)
    assert not permits(desk, job)

    desk.jobctl("cancel", job, "--discard", "--confirm", str(machine))
    desk.jobctl("wait", job, "--for", "CANCELLED")
    assert permits(desk, job) == {"token"}
    assert instance(desk, job)["destroyed_at"] is not None


def test_abandon_wants_the_right_id(desk: Home, job_file: MakeJob) -> None:
    """Without the id, or with another one, nothing happens; the right id destroys by a token."""
    job = in_dpo(desk, job_file, "abandoned")
    machine = instance(desk, job)["id"]

    refused = desk.jobctl("abandon", job, check=2)
    assert str(machine) in refused.stderr
    desk.jobctl("abandon", job, "--confirm", str(machine + 1), check=1)
    assert not permits(desk, job) and desk.job(job)["hold"] is None

    desk.jobctl("abandon", job, "--confirm", str(machine))
    desk.jobctl("wait", job, "--for", "ABANDONED")
    assert permits(desk, job) == {"token"}
    desk.jobctl("wait", job, check=9)


def test_retry_supersedes_the_receipt_and_accept_lets_go(desk: Home, job_file: MakeJob) -> None:
    """A verified job that is run again from SFT has no permit until it is verified again; then accept destroys."""
    job = desk.submit(job_file("asking", destroy="ask"))
    desk.jobctl("wait", job, "--for", "VERIFIED")
    view = desk.reach(job, "HELD")
    assert view["hold"]["reason"] == "ASK_DESTROY"
    desk.jobctl("wait", job, check=11)
    desk.jobctl("retry", job, "--from", "nonsense", check=2)

    desk.jobctl("retry", job, "--from", "sft")
    until(lambda: len(desk.events(job, "receipt.stored")) == 2, "verified a second time")
    view = desk.reach(job, "HELD")
    assert (view["state"], view["attempt"]) == ("VERIFIED", 2)
    assert len(desk.events(job, "stage.done")) == 6
    assert not permits(desk, job)

    desk.jobctl("accept", job)
    desk.jobctl("wait", job)
    assert permits(desk, job) == {"receipt"}


def test_retry_from_gguf_keeps_what_was_trained(desk: Home, job_file: MakeJob) -> None:
    """Only the conversion runs again, on the same machine."""
    job = desk.submit(job_file("converted", destroy="ask"))
    desk.jobctl("wait", job, "--for", "VERIFIED")
    desk.reach(job, "HELD")

    desk.jobctl("retry", job, "--from", "gguf")
    until(lambda: len(desk.events(job, "receipt.stored")) == 2, "verified a second time")
    assert len(desk.events(job, "stage.done")) == 4
    assert instance(desk, job)["destroyed_at"] is None


def test_hold_has_a_price(desk: Home, job_file: MakeJob) -> None:
    """After limits.hold dollars the machine is stopped, its data kept; resume starts it and the model comes home."""
    job = in_dpo(
        desk, job_file, "priced",
        machine="{gpu: [H200], count: 8}", limits="{price: 40.00/h, cost: $9.00, time: 1h, hold: $0.01}",
    )  # fmt: skip

    desk.jobctl("hold", job)
    until(lambda: desk.events(job, "stop.done"), "the hold has cost its limit")
    until(lambda: instance(desk, job)["intervals"][-1]["state"] != "running", "the market stopped it")
    assert desk.job(job)["hold"]["reason"] == "BY_PERSON"
    assert instance(desk, job)["destroyed_at"] is None and not permits(desk, job)

    go(desk, "priced")
    desk.jobctl("resume", job)
    desk.jobctl("wait", job)
    assert desk.events(job, "start.done")
    assert permits(desk, job) == {"receipt"}


def test_write_off(desk: Home, job_file: MakeJob) -> None:
    """A machine that is written off is not destroyed and not forgotten; its verified job can end."""
    job = desk.submit(job_file("written-off", destroy="ask"))
    desk.jobctl("wait", job, "--for", "VERIFIED")
    desk.reach(job, "HELD")
    machine = str(instance(desk, job)["id"])

    desk.jobctl("write-off", machine, check=2)
    desk.jobctl("write-off", machine, "--confirm", machine + "1", check=1)
    desk.jobctl("write-off", "1", "--confirm", "1", check=3)
    desk.jobctl("write-off", machine, "--confirm", machine)
    desk.jobctl("accept", job)
    desk.jobctl("wait", job)

    assert instance(desk, job)["destroyed_at"] is None and not permits(desk, job)
    (lease,) = [one for one in leases(desk) if str(one["instance"]) == machine]
    assert lease["state"] == "WRITTEN_OFF"


def leases(desk: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(desk.jobctl("leases", "--all", "--json").stdout)["leases"]
    return found


def test_looking_costs_nothing(desk: Home, job_file: MakeJob) -> None:
    """plan, offers, doctor, data-check and the reading verbs: exit codes, and not one create."""
    before = len(desk.ledger())
    spec = job_file("looked-at")

    planned = json.loads(desk.jobctl("plan", str(spec), "--json").stdout)
    assert planned["steps"] and planned["offers"]
    unfitting = job_file("dear", limits="{price: 0.01/h, cost: $5.00, time: 1h}")
    desk.jobctl("plan", str(unfitting), check=6)
    desk.jobctl("offers")
    desk.jobctl("offers", "--gpu", "ABACUS", check=6)
    desk.jobctl("doctor")
    desk.jobctl("data-check", str(spec.parent / "sft.jsonl"))
    desk.jobctl("status", "--json")
    for verb in ("show", "logs", "metrics"):
        desk.jobctl(verb, "nobody", check=3)
    desk.jobctl("hold", "nobody", check=3)

    assert len(desk.ledger()) == before
