"""The database is lost, or the computer is another one: no machine is forgotten, and no model is trained twice."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from conftest import MakeHome, MakeJob
from home import WITHIN_S, Home, until


def lose_the_database(one: Home) -> None:
    """With every copy of it."""
    state = one.folder / "state"
    for path in [*state.glob("homeport.db*"), *(state / "backups").iterdir()]:
        path.unlink()


def model_hash(view: dict[str, str], name: str) -> str:
    return hashlib.sha256((Path(view["model_dir"]) / f"{name}-Q8_0.gguf").read_bytes()).hexdigest()


def test_a_machine_taken_back(home: MakeHome, job_file: MakeJob, recorded: Path) -> None:
    """The database is deleted in DPO. The market says what bills; the next daemon knows the machine by its label; adopt
    and resume bring the very model home that it was making, on that one machine."""
    one = home()
    one.start("stage.done", "after", "1")
    job = one.submit(job_file())
    assert one.crashed()
    (instance,) = one.ledger()
    machine = str(instance["id"])
    lose_the_database(one)

    straight = json.loads(one.jobctl("leases", "--json", "--check", check=11).stdout)
    assert straight["source"] == "MARKET"
    assert [(str(lease["instance"]), lease["job"]) for lease in straight["leases"]] == [(machine, job)]
    doctor = one.jobctl("doctor", check=1).stdout
    assert "homeport.db is gone" in doctor and machine in doctor

    one.start()
    assert f"jobctl adopt {machine} JOB.yaml" in one.jobctl("leases", "--check", check=11).stdout
    one.jobctl("adopt", "1", str(job_file()), check=3)
    changed = job_file("quick", batch_size="8")
    assert "batch_size" in one.jobctl("adopt", machine, str(changed), check=1).stderr
    one.jobctl("adopt", machine, str(job_file()))

    view = one.reach(job, "HELD")
    assert (view["state"], view["hold"]["reason"]) == ("QUEUED", "RESTORED")
    one.jobctl("resume", job)
    view = one.reach(job, "DESTROYED")
    assert len(one.journal("PUT", "/asks/")) == 1 and one.ledger()[0]["destroyed_at"] is not None
    whole = hashlib.sha256((recorded / "gguf" / "Q8_0.gguf").read_bytes()).hexdigest()
    assert model_hash(view, "quick") == whole
    until(lambda: one.jobctl("leases", "--check").returncode == 0, "nothing bills")


@pytest.mark.full
def test_moved_to_another_computer(home: MakeHome, job_file: MakeJob, recorded: Path, tmp_path: Path) -> None:
    """Exported in DPO: no daemon starts on the old home any more; on the new one the very model comes home, from the
    same machine, without a hold."""
    old = home()
    old.start("stage.done", "after", "1")
    job = old.submit(job_file())
    assert old.crashed()
    file = tmp_path / "home.export"
    old.start()
    assert "another jobd" in old.jobctl("export", str(file), check=1).stderr
    old.kill()

    old.jobctl("export", str(file))
    assert file.stat().st_mode & 0o077 == 0
    refused = subprocess.run([old.bin / "jobd"], env=old.env, capture_output=True, text=True, timeout=WITHIN_S)
    assert refused.returncode == 1 and "exported to another computer" in refused.stderr

    new = Home(tmp_path / "new", old.bin, old.image, old.python)
    new.said = old.said
    new._configure()
    cut = tmp_path / "cut.export"
    cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    new.jobctl("import", str(cut), check=1)
    assert not (new.folder / "state" / "homeport.db").exists()
    new.jobctl("import", str(file))
    assert "jobs of its own" in new.jobctl("import", str(file), check=1).stderr
    try:
        new.start()
        view = new.reach(job, "DESTROYED")
    finally:
        new.close()
    assert len(old.journal("PUT", "/asks/")) == 1 and old.ledger()[0]["destroyed_at"] is not None
    whole = hashlib.sha256((recorded / "gguf" / "Q8_0.gguf").read_bytes()).hexdigest()
    assert model_hash(view, "quick") == whole and str(new.folder) in view["model_dir"]
    assert not new.events(job, "job.held")

    old.jobctl("import", str(file))
    old.start()
    assert old.reach(job, "HELD")["hold"]["reason"] == "RESTORED"
    assert len(old.journal("PUT", "/asks/")) == 1
