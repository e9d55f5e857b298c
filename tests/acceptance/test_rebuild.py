"""`deliver: rebuild`: the model is made here a second time, and only what differs is fetched."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from conftest import BOX_PYTHON, MakeHome, MakeJob
from home import Home, until

from daemon.cli.demo import forex_job
from daemon.sandbox import models

LINE_S = 2400.0
PATIENT_S = 400.0  # torch is imported here, on a machine with other work
GGUF = "quick-Q8_0.gguf"

pytestmark = pytest.mark.timeout(PATIENT_S + 100)


def wrapped(folder: Path, before: str = "", after: str = "") -> Path:
    """An interpreter that runs shell code around the making of files. $root is where they are made."""
    path = folder / "wrapped-python"
    path.write_text(
        f"""#!/bin/sh
case "$*" in *"remote_payload.rebuild --root"*) ;; *) exec {BOX_PYTHON} "$@" ;; esac
for root; do :; done
{before}
{BOX_PYTHON} "$@" > {folder}/told || exit 1
{after}
cat {folder}/told
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def proven(view: dict[str, Any], gguf: str = GGUF) -> bool:
    """The model is in its folder, and every level passed."""
    folder = Path(view["model_dir"])
    receipt = json.loads((folder / "receipt.json").read_text())
    return (folder / gguf).is_file() and [level["passed"] for level in receipt["levels"]] == [True] * 6


def fetched(home: Home, job: str) -> int:
    """Bytes of the artifact set that did not lie here when its download began."""
    sizes = json.loads((Path(home.job(job)["model_dir"]) / "manifest.json").read_text())["files"]
    return sum(file["size"] for file in sizes) - home.events(job, "download.started")[0]["here"]


def left(home: Home) -> list[Path]:
    return list((home.folder / "models" / ".rebuild" / "jobs").glob("*"))


def test_rebuilt_and_not_fetched(home: MakeHome, job_file: MakeJob) -> None:
    """The file built here is the machine's to the last byte, so neither it nor the adapter is fetched for the model;
    proof and receipt are those of a download."""
    one = home(box_python=BOX_PYTHON)
    one.start()

    job = one.submit(job_file(deliver="rebuild"))
    view = one.reach(job, "DESTROYED", within_s=PATIENT_S)

    (compared,) = one.events(job, "rebuild.compared")
    assert compared["agreeing"] == compared["size"] > 1_000_000
    assert proven(view)
    assert fetched(one, job) < 1_000_000
    assert f"Q8_0: {compared['size']:,} of {compared['size']:,} bytes rebuilt here" in one.jobctl("show", job).stdout
    assert left(one) == []


@pytest.mark.full
def test_damage_after_it_was_hashed_is_fetched(home: MakeHome, job_file: MakeJob, tmp_path: Path) -> None:
    """What the script promised and the disk does not hold is found by the download's own reading, and mended by it."""
    one = home(box_python=wrapped(tmp_path, after=f"printf x | dd of=$root/run/out/{GGUF} seek=9000 bs=1 conv=notrunc"))
    one.start()

    job = one.submit(job_file(deliver="rebuild"))

    assert proven(one.reach(job, "DESTROYED", within_s=PATIENT_S))
    assert one.events(job, "rebuild.compared")[0]["agreeing"] > 1_000_000


@pytest.mark.full
def test_other_bytes_are_downloaded(home: MakeHome, job_file: MakeJob, tmp_path: Path) -> None:
    """A base model that changed here since submit makes another file: nothing agrees, and all of it comes home."""
    changed = "cp -rL $root/model $root/other; rm $root/model; mv $root/other $root/model; "
    changed += r"printf '' | dd of=$root/model/model.safetensors seek=500000 bs=1 conv=notrunc"
    one = home(box_python=wrapped(tmp_path, before=changed))
    one.start()

    job = one.submit(job_file(deliver="rebuild"))

    assert proven(one.reach(job, "DESTROYED", within_s=PATIENT_S))
    assert one.events(job, "rebuild.compared")[0]["agreeing"] == 0


def test_a_rebuild_that_fails_is_a_download(home: MakeHome, job_file: MakeJob, tmp_path: Path) -> None:
    """The converter's error is told, the model comes home, and nothing is left of the try."""
    one = home(box_python=wrapped(tmp_path, before="echo no room left >&2; exit 71"))
    one.start()

    job = one.submit(job_file(deliver="rebuild"))

    assert proven(one.reach(job, "DESTROYED", within_s=PATIENT_S))
    (failed,) = one.events(job, "rebuild.failed")
    assert "71" in failed["why"] and "no room left" in failed["why"]
    assert one.events(job, "rebuild.compared") == [] and left(one) == []


def test_the_daemon_is_killed_while_it_rebuilds(home: MakeHome, job_file: MakeJob, tmp_path: Path) -> None:
    """Its script ends with it; the next daemon begins again, and the model is rebuilt and proven."""
    stuck, pid = tmp_path / "stuck", tmp_path / "pid"
    stuck.touch()
    waiting = f"while [ -e {stuck} ]; do read _ || exit 75; done"
    one = home(box_python=wrapped(tmp_path, before=f"echo $$ > {pid}; {waiting}"))
    one.start()
    job = one.submit(job_file(deliver="rebuild"))
    script = int(until(lambda: pid.exists() and pid.read_text(), "it rebuilds", PATIENT_S))

    one.kill(signal.SIGKILL)
    until(lambda: not is_alive(script), "its script ends")
    stuck.unlink()
    one.start()

    assert proven(one.reach(job, "DESTROYED", within_s=PATIENT_S))
    assert one.events(job, "rebuild.compared")[-1]["agreeing"] > 1_000_000
    assert len(one.ledger()) == 1


def test_without_the_converter(home: MakeHome, job_file: MakeJob) -> None:
    """An interpreter that lacks it: `rebuild` is refused before anything is rented, with what mends it; `plan` says so
    too; `auto` downloads, and says why."""
    one = home()
    one.start()

    refused = one.jobctl("submit", "-y", str(job_file(deliver="rebuild")), check=None)
    planned = one.jobctl("plan", str(job_file(deliver="rebuild")), check=None).stdout
    job = one.submit(job_file(deliver="auto"))

    assert refused.returncode != 0 and "lacks torch" in refused.stderr and "homeport[box]" in refused.stderr
    assert "lacks torch" in planned
    assert proven(one.reach(job, "DESTROYED", within_s=PATIENT_S))
    (chosen,) = one.events(job, "deliver.chosen")
    assert chosen["way"] == "download" and "lacks torch" in chosen["why"]


@pytest.mark.full
@pytest.mark.timeout(LINE_S)
def test_smollm2_is_rebuilt(home: MakeHome, tmp_path: Path) -> None:
    """Real training, 135M weights, a K-quant too: built here while the machine still scores its own, all of the Q8_0
    agrees, and what is fetched after the manifest are records."""
    models.build_smollm2(tmp_path / "smollm2", BOX_PYTHON)
    spec = forex_job(tmp_path, tmp_path / "smollm2", "full")
    text = spec.read_text().replace("gguf: [Q8_0]", "gguf: [Q8_0, Q4_K_M]").replace("batch_size: 4", "batch_size: 1")
    spec.write_text(text + "deliver: rebuild\n")
    one = home(real=True, box_python=BOX_PYTHON)
    one.start()

    job = one.submit(spec)
    view = one.reach(job, "DESTROYED", within_s=LINE_S)

    agreeing = {event["quant"]: event["agreeing"] / event["size"] for event in one.events(job, "rebuild.compared")}
    print(f"agreeing: {agreeing}, fetched: {fetched(one, job)}")
    assert agreeing["Q8_0"] == 1
    assert proven(view, "forex-demo-Q8_0.gguf") and fetched(one, job) < 200_000_000


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
