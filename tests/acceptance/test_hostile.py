"""Boxes that lie: no bad model is VERIFIED, no machine that may hold the good one goes, no file leaves its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import write_job
from home import Home
from hostile_box import DEEDS, launcher

from daemon.artifacts.tiny import write_tiny

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from nano_artifacts import nano_artifacts  # the verifier's own impostors

COVERED_UP = sorted(DEEDS["before", "manifest"])
CONTRADICTED = sorted(DEEDS["after", "manifest"])


@pytest.fixture(scope="module")
def court(installed: Path, recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One home in which a job of every deed has been submitted; the job is called like the deed."""
    folder = tmp_path_factory.mktemp("court")
    impostors = nano_artifacts().others
    for name in ("base", "opposite"):
        (folder / f"{name}.gguf").write_bytes(impostors[name].read_bytes())
    write_tiny(folder / "tiny.gguf")
    home = Home(folder / "home", installed, "homeport/replay", launcher(folder, installed / "python"))
    home.open_market()
    home.start()
    for name in ["noise", "future-status", "forged-done", *COVERED_UP, *CONTRADICTED]:  # the market has twenty machines
        home.submit(write_job(recorded, folder, name))
    yield home
    home.close()


def held(court: Home, name: str) -> dict[str, str]:
    """The job's hold, and proof that its machine was not let go and nothing was called a model."""
    view = court.reach(name, "HELD")
    (instance,) = [i for i in court.ledger() if f"-{view['id']}-" in i["label"]]
    assert instance["destroyed_at"] is None
    assert not court.journal("DELETE", f"/instances/{instance['id']}/")
    assert view["state"] in ("GGUF", "DOWNLOADED") and view["model_dir"] is None
    assert not court.events(view["id"], "receipt.stored")
    hold: dict[str, str] = view["hold"]
    return hold


@pytest.mark.parametrize("name", COVERED_UP)
def test_bad_model_under_a_manifest_that_fits(court: Home, name: str) -> None:
    """Damage and impostors that were hashed as they are fail verification; the machine is kept."""
    assert held(court, name)["reason"] == "VERIFY_FAILED"


@pytest.mark.parametrize("name", CONTRADICTED)
def test_bytes_that_the_manifest_denies(court: Home, name: str) -> None:
    """What differs from its manifest, or a manifest that must not be followed, never gets as far as verification."""
    assert held(court, name)["reason"] == "TRANSFER_FAILED"


def test_status_of_a_contract_we_do_not_know(court: Home) -> None:
    """A box that speaks another contract is held; the machine is kept."""
    view = court.reach("future-status", "HELD")
    assert view["hold"]["reason"] == "TRANSFER_FAILED" and "contract 99" in view["hold"]["detail"]
    assert not court.events(view["id"], "destroy")


def test_a_marker_of_another_stage(court: Home) -> None:
    """A done.json under another nonce ends no stage: held, and the machine is kept."""
    view = court.reach("forged-done", "HELD")
    assert view["hold"]["reason"] == "TRANSFER_FAILED" and "0000000000" in view["hold"]["detail"]
    assert view["state"] == "DPO" and not court.events(view["id"], "destroy")
    assert len(court.events(view["id"], "stage.done")) == 1  # SFT's own


def test_noise_does_not_hurt(court: Home) -> None:
    """Rubbish among events, escapes in the log and lines that never end are left out; the good model comes home."""
    view = court.reach("noise", "DESTROYED")
    log = court.jobctl("logs", "noise").stdout
    assert "noisy" in log and "\x1b" not in log and "\x07" not in log
    assert Path(view["model_dir"], "noise-Q8_0.gguf").exists()


def test_nothing_outside_the_incoming_folder(court: Home) -> None:
    """However a manifest names its files, here they lie under .incoming-JOB, .rescue-JOB or nowhere."""
    for name in CONTRADICTED:
        court.reach(name, "HELD")
    made = {path.name for path in (court.folder / "models").iterdir()}
    jobs = {court.job(name)["id"] for name in ["noise", *COVERED_UP, *CONTRADICTED]}
    assert made <= {"noise"} | {f".{kind}-{job}" for kind in ("incoming", "rescue") for job in jobs}
    outside = court.folder.parent.parent
    found = {name for _, _, names in os.walk(outside) for name in names}  # which bears folders that go meanwhile
    assert not found & {"escaped.gguf", "elsewhere.gguf"}
    assert not Path("/tmp/escaped.gguf").exists()
    assert court.daemon is not None and court.daemon.poll() is None
    assert "job.crashed" not in (court.folder / "state" / "jobd.log").read_text()
