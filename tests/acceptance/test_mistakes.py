"""What people get wrong and what befalls computers: a message, an exit code, nothing lost, nothing rented twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeHome, MakeJob
from home import WITHIN_S, Home, until

FIVE_ERRORS = """\
version: 1
name: "no spaces allowed"
model: {model}
sft: {{data: sft.jsonl, epochs: many}}
bach_size: 4
limits:
  price: 5.00/h
  time: 90
  cost: lots
"""


def jobd(home: Home, within_s: float = WITHIN_S) -> subprocess.CompletedProcess[str]:
    """A daemon that is expected to end by itself."""
    return subprocess.run([home.bin / "jobd"], capture_output=True, text=True, env=home.env, timeout=within_s)


def database(home: Home) -> Path:
    return home.folder / "state" / "homeport.db"


def creates(home: Home) -> int:
    return len(home.journal("PUT", "/asks/"))


def test_every_mistake_of_a_spec_at_once(home: MakeHome, job_file: MakeJob, tmp_path: Path) -> None:
    """Five mistakes: five lines that name file and line, one suggestion, exit 2; then bad rows the same way."""
    one = home()
    one.start()
    good = job_file()
    bad = good.with_name("bad.yaml")
    bad.write_text(FIVE_ERRORS.format(model=good.parent))

    refused = one.jobctl("submit", "-y", str(bad), check=2).stderr
    assert {f"bad.yaml:{line}:" for line in (2, 4, 5, 8, 9)} <= {
        f"bad.yaml:{word.split(':')[1]}:" for word in refused.split("bad.yaml")[1:]
    }
    assert "batch_size" in refused

    rows = (good.parent / "sft.jsonl").read_text().splitlines()
    rows[1], rows[4] = "{not json", '{"prompt": 7}'
    (good.parent / "sft.jsonl").write_text("\n".join(rows) + "\n")
    refused = one.jobctl("submit", "-y", str(good), check=2).stderr
    assert "sft.jsonl:2:" in refused and "sft.jsonl:5:" in refused
    one.jobctl("show", "quick", check=3)
    assert creates(one) == 0


def test_the_same_submit_twice_is_one_job(home: MakeHome, job_file: MakeJob) -> None:
    """The very same file again is the same job and the same machine; another one of its name is refused."""
    one = home()
    one.start()
    spec = job_file(destroy="ask")

    job = one.submit(spec)
    assert one.submit(spec) == job
    one.jobctl("submit", "-y", "--again", str(spec), check=1)
    one.jobctl("wait", job, "--for", "VERIFIED")
    assert one.submit(spec) == job
    assert creates(one) == len(one.ledger()) == 1


def test_keys(home: MakeHome, job_file: MakeJob) -> None:
    """Without a key the daemon says where it looked (5); a refused key is never shown; mended, resume goes on."""
    one = home()
    key = one.folder / "config" / "vast_api_key"
    right = key.read_text()
    key.unlink()
    missing = jobd(one)
    assert missing.returncode == 5
    assert "VAST_API_KEY" in missing.stderr and str(key) in missing.stderr

    wrong = "0123456789abcdef"
    key.touch(mode=0o600)
    key.write_text(wrong)
    one.start()
    assert one.jobctl("doctor", check=1).stdout.count("FAIL")
    job = one.submit(job_file())
    until(lambda: "invalid user key" in one.jobctl("status").stdout, "status says that the key is refused")
    assert one.reach(job, "HELD")["hold"]["reason"] == "CREDENTIALS"
    shown = one.jobctl("status").stdout + one.jobctl("doctor", check=1).stdout
    assert creates(one) == 0 and one.job(job)["state"] == "QUEUED"
    assert wrong not in shown and wrong not in (one.folder / "state" / "jobd.log").read_text()

    one.kill(signal.SIGTERM)
    key.write_text(right)
    one.start()
    one.jobctl("resume", job)
    one.reach(job, "DESTROYED")
    assert creates(one) == 1


def test_no_daemon_two_daemons_and_a_newer_database(home: MakeHome, job_file: MakeJob) -> None:
    """Without a daemon old figures and exit 4; a second daemon is refused; so is a database from the future."""
    one = home()
    one.jobctl("status", check=4)
    one.start()
    job = one.submit(job_file(destroy="ask"))
    one.jobctl("wait", job, "--for", "VERIFIED")
    second = jobd(one)
    assert second.returncode == 1
    assert one.daemon is not None and str(one.daemon.pid) in second.stderr
    one.jobctl("status")

    one.kill()
    old = one.jobctl("status", check=4).stdout
    assert job in old and "old" in old
    one.jobctl("resume", job, check=4)
    one.jobctl("submit", "-y", str(job_file("later")), check=4)

    _set_revision(database(one), "9999")
    newer = jobd(one)
    assert newer.returncode == 1 and "newer homeport" in newer.stderr
    _set_revision(database(one), "0001")
    one.start()
    one.reach(job, "HELD")
    one.jobctl("accept", job)
    one.reach(job, "DESTROYED")
    assert creates(one) == 1


def _set_revision(path: Path, revision: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def test_a_backup_put_back_rents_nothing_by_itself(home: MakeHome, job_file: MakeJob) -> None:
    """A database from before the create: HELD(RESTORED). Only resume rents again, and not while the model that it has
    forgotten lies here; the first machine keeps what it has until the model is verified."""
    one = home()
    one.start("create.intent", "before")
    one.jobctl("submit", "-y", str(job_file(destroy="ask")), check=None)
    assert one.crashed()
    backup = one.folder / "backup.db"
    with contextlib.closing(sqlite3.connect(database(one))) as db:
        db.execute("VACUUM INTO ?", (str(backup),))
    one.start()
    job = one.job("quick")["id"]
    one.jobctl("wait", job, "--for", "VERIFIED")
    one.kill()

    for leftover in database(one).parent.glob("homeport.db-*"):
        leftover.unlink()
    shutil.copyfile(backup, database(one))
    one.start()
    view = one.reach(job, "HELD")
    assert (view["state"], view["hold"]["reason"]) == ("QUEUED", "RESTORED")
    one.jobctl("leases", "--check", check=11)

    assert creates(one) == len(one.ledger()) == 1

    one.jobctl("resume", job)
    until(lambda: "/quick/v1-" in str((one.job(job)["hold"] or {}).get("detail")), "it says where the model is")
    assert creates(one) == 1
    (forgotten,) = one.folder.glob(f"**/quick/v1-{job}")
    forgotten.rename(one.folder / "elsewhere")
    one.jobctl("resume", job)
    until(lambda: (one.job(job)["hold"] or {}).get("reason") == "ASK_DESTROY", "verified, and asks before it destroys")
    assert creates(one) == 2
    assert [instance["destroyed_at"] for instance in one.ledger()] == [None, None]
    one.jobctl("accept", job)
    one.reach(job, "DESTROYED")
    assert None not in [instance["destroyed_at"] for instance in one.ledger()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk(home: MakeHome, job_file: MakeJob, small_disk: Path) -> None:
    """No room for the model: refused at submit; filled up later: HELD, the machine kept, and resume finishes."""
    one = home()
    config = one.folder / "config" / "config.toml"
    config.write_text(f'models_dir = "{small_disk}"\n{config.read_text()}')
    one.start("box.proven", "after")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - (1 << 20)))
    refused = one.jobctl("submit", "-y", str(job_file()), check=1)
    assert "free" in refused.stderr and str(small_disk) in refused.stderr
    assert creates(one) == 0

    ballast.unlink()
    job = one.submit(job_file())
    assert one.crashed()
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - (1 << 20)))
    one.start()
    view = one.reach(job, "HELD")
    assert view["hold"]["reason"] == "DISK_FULL"
    assert not one.journal("DELETE", "/instances/")

    ballast.unlink()
    one.jobctl("resume", job)
    one.reach(job, "DESTROYED")
    assert json.loads((Path(one.job(job)["model_dir"]) / "receipt.json").read_text())
    assert creates(one) == 1
