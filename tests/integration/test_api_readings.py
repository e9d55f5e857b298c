"""What the read model concludes from real rows: what is in flight, is the model safe, what does it cost, until when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stored import HOUR, NOW, Stored

from daemon.errors import StoreError
from daemon.store import readonly
from daemon.store.readonly import ReadModel
from daemon.store.shapes import JobView

GB = 1_000_000_000


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path / "state" / "homeport.db")


@pytest.fixture
def model(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> ReadModel:
    monkeypatch.setattr(readonly, "now_ms", lambda: NOW)
    return ReadModel(stored.path, stored.path.parent / "jobs")


def the_job(model: ReadModel) -> JobView:
    (view,) = model.jobs()["jobs"]
    assert model.job("@last")["job"] == view  # both readings agree
    return view


IN_FLIGHT = [
    pytest.param({}, None, None, "SEARCHING", id="no machine yet"),
    pytest.param({}, None, ("create", "SENT"), "RENTING", id="create sent"),
    pytest.param({}, None, ("create", "UNKNOWN"), "UNANSWERED", id="reply to a create lost"),
    pytest.param({}, None, ("create", "REFUSED"), "SEARCHING", id="create refused"),
    pytest.param({}, {"status": "loading"}, None, "BOOTING", id="loading"),
    pytest.param({}, {"status": None}, None, "BOOTING", id="not listed yet"),
    pytest.param({}, {}, None, "SETTING_UP", id="running"),
    pytest.param({"state": "PROVISIONED"}, {}, None, "STARTING", id="before the first stage"),
    pytest.param({"state": "SFT"}, {}, None, None, id="training says itself"),
    pytest.param({"state": "SFT"}, {"status": "exited"}, None, "STOPPED", id="machine stopped"),
    pytest.param({"state": "GGUF"}, {}, None, None, id="converting says itself"),
    pytest.param({"state": "GGUF", "manifest_sha256": "m"}, {}, None, "DOWNLOADING", id="manifest known"),
    pytest.param({"state": "DOWNLOADED"}, {}, None, "VERIFYING", id="all here"),
    pytest.param({"state": "VERIFIED"}, {}, None, "RETURNING", id="verified"),
    pytest.param({"state": "VERIFIED"}, {}, ("destroy", "SENT"), "DESTROYING", id="destroy sent"),
    pytest.param({"state": "VERIFIED"}, {}, ("destroy", "DONE"), "DESTROYING", id="destroy accepted, not confirmed"),
    pytest.param({"state": "VERIFIED"}, {}, ("destroy", "REFUSED"), "RETURNING", id="destroy refused"),
    pytest.param({"state": "VERIFIED"}, {"state": "GONE"}, ("destroy", "DONE"), "RETURNING", id="gone is confirmed"),
    pytest.param({"state": "DESTROYED"}, {"state": "GONE"}, None, None, id="ended"),
    pytest.param({"hold_reason": "NO_OFFERS", "hold_since": NOW}, None, None, None, id="held: nothing is searched"),
    pytest.param(
        {"hold_reason": "BY_PERSON", "hold_since": NOW}, None, ("create", "SENT"), "RENTING", id="held while renting"
    ),
]


@pytest.mark.parametrize(("job", "lease", "operation", "expected"), IN_FLIGHT)
def test_what_is_in_flight_is_derived(
    model: ReadModel,
    stored: Stored,
    job: dict[str, Any],
    lease: dict[str, Any] | None,
    operation: tuple[str, str] | None,
    expected: str | None,
) -> None:
    """The state never says what is in flight; operations, leases and the manifest do."""
    stored.job("k7f3qd", **job)
    if lease is not None:
        stored.lease("k7f3qd", **lease)
    if operation is not None:
        kind, state = operation
        stored.operation(kind, state, job_id="k7f3qd", lease_id=1 if lease is not None else None)

    assert the_job(model)["activity"] == expected


def test_out_of_contact_is_said_with_its_time(model: ReadModel, stored: Stored) -> None:
    """A box that does not answer is out of contact since then, and nothing worse."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd")
    stored.insert("box_reports", job_id="k7f3qd", attempt=1, seen_at=NOW - HOUR, lost_since=NOW - HOUR // 2)

    view = the_job(model)

    assert view["activity"] == "OUT_OF_CONTACT"
    assert view["out_of_contact_since"] == readonly.iso(NOW - HOUR // 2)
    assert [item["kind"] for item in model.jobs()["attention"]] == ["OUT_OF_CONTACT"]


def test_contact_lost_with_an_earlier_machine_is_nothing_of_this_one(model: ReadModel, stored: Stored) -> None:
    """A new machine boots after one that was lost."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd")
    stored.insert("box_reports", job_id="k7f3qd", attempt=1, seen_at=NOW - 2 * HOUR, lost_since=NOW - 2 * HOUR)

    view = the_job(model)

    assert (view["activity"], view["out_of_contact_since"]) == (None, None)


def test_the_model_is_safe_only_by_a_receipt_whose_files_are_there(
    model: ReadModel, stored: Stored, tmp_path: Path
) -> None:
    """With a receipt and its files: yes. A file gone or of another size: no longer, and the screens say so."""
    stored.job("k7f3qd", state="VERIFIED", manifest_sha256="m")
    stored.lease("k7f3qd")
    folder = tmp_path / "models" / "support-bot"
    stored.receipt("k7f3qd", folder, {"a.gguf": b"weights", "README.md": b"card"})
    assert the_job(model)["safety"] | {"text": ""} == {"where": "HERE", "safe": True, "text": "", "path": str(folder)}

    (folder / "a.gguf").write_bytes(b"weight")
    cut = the_job(model)["safety"]
    (folder / "a.gguf").unlink()
    gone = the_job(model)["safety"]

    assert (cut["safe"], gone["safe"]) == (False, False)
    assert "NO LONGER" in gone["text"]
    assert [item["kind"] for item in model.jobs()["attention"]] == ["MODEL_MISSING"]


@pytest.mark.parametrize(
    "why", ["superseded", "other attempt", "other manifest"], ids=lambda why: str(why).replace(" ", "-")
)
def test_an_old_receipt_makes_nothing_safe(model: ReadModel, stored: Stored, tmp_path: Path, why: str) -> None:
    """A receipt counts for the current artifact set of the current attempt, and until it is superseded."""
    stored.job("k7f3qd", state="DOWNLOADED", manifest_sha256="m", attempt=2)
    stored.lease("k7f3qd")
    receipt = {
        "attempt": 1 if why == "other attempt" else 2,
        "manifest_sha256": "x" if why == "other manifest" else "m",
    }
    stored.receipt("k7f3qd", tmp_path / "models", {"a.gguf": b"weights"}, **receipt)
    if why == "superseded":
        stored.insert("supersessions", receipt_id=1, at=NOW, reason="test")

    assert not the_job(model)["safety"]["safe"]


def test_a_hash_only_receipt_says_what_was_not_checked(model: ReadModel, stored: Stored, tmp_path: Path) -> None:
    """`verify: {level: hash}` is repeated wherever the answer is yes."""
    stored.job("k7f3qd", state="VERIFIED", manifest_sha256="m")
    stored.receipt("k7f3qd", tmp_path / "models", {"a.gguf": b"weights"}, level="hash")

    assert "behaviour was not checked" in the_job(model)["safety"]["text"]


UNSAFE = [
    pytest.param({"state": "SFT"}, None, "no. The model exists nowhere yet", id="no checkpoint"),
    pytest.param({"state": "SFT"}, 400, "checkpoint 400 is on instance 29481133", id="checkpoint on the box"),
    pytest.param(
        {"state": "SFT", "attempt": 2}, 400, "checkpoint 400 is on instance", id="retried on the same machine"
    ),
    pytest.param({"state": "FAILED"}, None, "ended without a model", id="failed"),
]


@pytest.mark.parametrize(("job", "checkpoint", "text"), UNSAFE)
def test_before_the_model_exists(
    model: ReadModel, stored: Stored, job: dict[str, Any], checkpoint: int | None, text: str
) -> None:
    """What exists so far, and where, is said without promising anything."""
    stored.job("k7f3qd", **job)
    stored.lease("k7f3qd", state="GONE" if job["state"] == "FAILED" else "LIVE")
    if checkpoint is not None:
        status = json.dumps({"checkpoint_step": checkpoint})
        stored.insert("box_reports", job_id="k7f3qd", attempt=1, status_json=status, seen_at=NOW)

    safety = the_job(model)["safety"]

    assert not safety["safe"]
    assert text in safety["text"]


def test_a_download_counts_whole_chunks_and_names_the_machine(model: ReadModel, stored: Stored) -> None:
    """Durable chunks are here, the whole is on the box: bytes, pace, end, place and instance are named."""
    stored.job("k7f3qd", state="GGUF")
    began = json.dumps({"here": (8 << 20) + 10})
    stored.insert("events", job_id="k7f3qd", at=NOW - 4000, kind="download.started", by="daemon", body=began)
    stored.lease("k7f3qd")
    stored.manifest("k7f3qd", {"a.gguf": 100 << 20, "b.json": 10})
    stored.download("k7f3qd", "run/out/a.gguf", 100 << 20, chunks=5, resent_bytes=77)
    stored.download("k7f3qd", "run/out/b.json", 10, chunks=1)

    view = the_job(model)

    counted = {"stage": "GGUF", "done": (40 << 20) + 10, "total": (100 << 20) + 10, "unit": "BYTES"}
    assert view["progress"] == {**counted, "per_s": 8 << 20, "resent": 77}
    assert view["eta_s"] == 8
    assert view["safety"]["where"] == "BOX"
    assert "41.9 MB of 104.9 MB is here; the whole model is on instance 29481133" in view["safety"]["text"]


def test_a_model_whose_machine_is_gone_is_nowhere(model: ReadModel, stored: Stored) -> None:
    """A half downloaded model without its machine is not called safe, nor on a box."""
    stored.job("k7f3qd", state="GGUF", hold_reason="GONE", hold_since=NOW)
    stored.lease("k7f3qd", state="GONE")
    stored.manifest("k7f3qd", {"a.gguf": 100 << 20})

    assert the_job(model)["safety"]["where"] == "NOWHERE"


def test_cost_is_recorded_time_and_what_accrued_since(model: ReadModel, stored: Stored) -> None:
    """What was counted up to the last look, half an hour at the full price since, and every lease of the job."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd", state="GONE", instance_id=1, settled_cost=250_000)
    stored.lease("k7f3qd", instance_id=2, cost=810_000, observed_ms=NOW - HOUR // 2)

    view = the_job(model)

    assert view["cost"] == "1.26"  # 0.25 settled + 0.81 counted + 0.20 since
    assert model.jobs()["money"]["cost"] == "1.01"
    assert model.jobs()["money"]["rate"] == "0.40"


def test_the_loss_deadline_is_the_nearer_of_contract_and_credit(model: ReadModel, stored: Stored) -> None:
    """Credit divided by what all machines burn, or the end of the contract; none once the model is safe."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd", end_ms=NOW + 100 * HOUR)
    stored.listing(credit=4_000_000)

    assert the_job(model)["loss_deadline"] == {"at": readonly.iso(NOW + 10 * HOUR), "cause": "CREDIT_ENDS"}


def test_the_contract_may_end_first(model: ReadModel, stored: Stored) -> None:
    """Without knowing the credit, the contract's end is the deadline."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd", end_ms=NOW + 9 * HOUR)

    assert the_job(model)["loss_deadline"] == {"at": readonly.iso(NOW + 9 * HOUR), "cause": "CONTRACT_ENDS"}


def test_time_left_follows_the_pace_of_the_last_steps(model: ReadModel, stored: Stored) -> None:
    """Ten seconds a step, 100 steps to go."""
    stored.job("k7f3qd", state="SFT")
    stored.steps("k7f3qd", "SFT", 370, 420, 520)

    assert the_job(model)["eta_s"] == 1000


def test_a_new_stage_does_not_show_the_old_ones_steps(model: ReadModel, stored: Stored) -> None:
    """DPO has just begun: SFT's last loss may stay on screen, its step count and time left may not."""
    stored.job("k7f3qd", state="DPO")
    stored.steps("k7f3qd", "SFT", 500, 520, 520)

    view = the_job(model)

    assert (view["progress"], view["eta_s"]) == (None, None)


def test_another_attempt_starts_with_clean_figures(model: ReadModel, stored: Stored) -> None:
    """Metrics of an earlier attempt are history, not progress."""
    stored.job("k7f3qd", state="SFT", attempt=2)
    stored.steps("k7f3qd", "SFT", 500, 520, 520)

    assert the_job(model)["progress"] is None


def test_pages_follow_their_cursor(model: ReadModel, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading page after page by the last cursor gives every event once, in order."""
    monkeypatch.setattr(readonly, "EVENTS_PAGE", 3)
    stored.job("k7f3qd")
    for n in range(7):
        stored.insert("events", job_id="k7f3qd", at=NOW, kind=f"e{n}", by="daemon", body="{}")

    seen: list[str] = []
    after = 0
    while page := model.events("k7f", after)["events"]:
        seen += [event["kind"] for event in page]
        after = page[-1]["id"]

    assert seen == [f"e{n}" for n in range(7)]


def test_a_log_is_paged_in_whole_lines(model: ReadModel, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages end at line ends, and together they are the log."""
    monkeypatch.setattr(readonly, "LOG_PAGE", 10)
    stored.job("k7f3qd")
    log = model.job_folders / "k7f3qd" / "log.txt"
    log.parent.mkdir(parents=True)
    text = "".join(f"line {n}\n" for n in range(9))
    log.write_text(text)

    pages, offset = [], 0
    while (page := model.log("k7f", offset))["text"]:
        pages.append(page["text"])
        offset = page["offset"]

    assert "".join(pages) == text
    assert all(page.endswith("\n") for page in pages)


def test_a_file_that_is_no_database_is_a_store_error(tmp_path: Path) -> None:
    """A broken database is named with the command that examines it."""
    broken = tmp_path / "homeport.db"
    broken.write_bytes(b"not a database" * 100)

    with pytest.raises(StoreError) as caught:
        ReadModel(broken, tmp_path).jobs()

    assert caught.value.hint == "jobctl doctor"


def test_the_read_model_cannot_write(stored: Stored) -> None:
    """The connection is read-only: even raw SQL changes nothing."""
    stored.job("k7f3qd")

    with pytest.raises(StoreError), readonly.connection(stored.path) as db:
        db.execute("DELETE FROM jobs")
