"""`jobctl doctor` finds each planted fault by its name, with what mends it; `--fix` mends those it offers to."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from sandboxes import ROOT
from scripted import Scripted, running
from stored import Stored

from daemon import platform, settings
from daemon.cli import checks, market_checks, service_checks
from daemon.cli.exits import Exit
from daemon.cli.jobctl import jobctl
from daemon.control.leadership import hold_lock
from daemon.errors import StoreError
from daemon.settings import Settings
from daemon.store import backups, high_water
from daemon.store.high_water import HighWater
from daemon.store.readonly import ReadModel

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real local market with one machine rented under a label of the install `mine`."""
    folder = tmp_path_factory.mktemp("market")
    command = [sys.executable, "-m", "daemon.sandbox.serve", "--dir", str(folder), "--image", "box=/usr/bin/python3"]
    command += ["--no-rate-limits", "--time-scale", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    process.stdout.close()
    yield said
    process.terminate()
    process.wait(20)


@dataclass
class Home:
    """One person's home; faults are planted into its files."""

    config: Settings
    patch: pytest.MonkeyPatch
    url: str

    def doctor(self, *options: str) -> dict[str, dict[str, str]]:
        result = CliRunner().invoke(jobctl, ["doctor", "--json", *options], catch_exceptions=False)
        found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
        assert result.exit_code == any(check["status"] == "FAIL" for check in found.values())
        return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, market: dict[str, str]) -> Home:
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VAST_URL", market["url"])
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    config = settings.load()
    config.paths.config.mkdir(parents=True)
    config.paths.key_file.touch(mode=0o600)
    config.paths.key_file.write_text(market["api_key"])
    config.paths.state.mkdir(mode=0o700)
    Stored(config.paths.database)
    config.paths.database.chmod(0o600)
    backups.write(config.paths.database, config.paths.backups / f"homeport-{time.time_ns() // 1_000_000}.db")
    config.paths.ssh_key.touch(mode=0o600)
    high_water.write(config.paths.database.with_name(high_water.NAME), HighWater(1, 0, "machine", "mine"))
    # It starts a child that loads llama.cpp, seconds each time: once is enough, below.
    fast = tuple(check for check in checks.CHECKS if check is not checks._verifier)
    monkeypatch.setattr(checks, "CHECKS", fast)
    return Home(config, monkeypatch, market["url"])


Plant = Callable[[Home], object]


def damage(home: Home) -> None:
    content = bytearray(home.config.paths.database.read_bytes())
    content[4096:12288] = b"\xa5" * 8192
    home.config.paths.database.write_bytes(content)


def rewritten(change: Callable[[bytes], bytes]) -> Plant:
    """The database's own bytes, changed."""

    def plant(home: Home) -> None:
        home.config.paths.database.write_bytes(change(home.config.paths.database.read_bytes()))

    return plant


def damage_leases(home: Home) -> None:
    """One page: where the table of leases begins."""
    with closing(sqlite3.connect(home.config.paths.database)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'leases'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    begin = (page - 1) * size
    rewritten(lambda content: content[:begin] + b"\xa5" * size + content[begin + size :])(home)


DAMAGES: dict[str, Plant] = {
    "two damaged pages": damage,
    "a damaged page of leases": damage_leases,
    "a bad header": rewritten(lambda content: b"\xa5" * 100 + content[100:]),
    "half of it": rewritten(lambda content: content[: len(content) // 2]),
    "nothing in it": rewritten(lambda content: b""),
}


def no_copies(home: Home) -> None:
    for copy in home.config.paths.backups.iterdir():
        copy.unlink()


def damage_without_copies(home: Home) -> None:
    damage(home)
    no_copies(home)


def config_line(line: str) -> Plant:
    return lambda home: home.config.paths.config_file.write_text(line + "\n")


def an_hour_wrong(home: Home) -> None:
    true = time.time
    home.patch.setattr(market_checks.time, "time", lambda: true() + 600)  # type: ignore[attr-defined]


def on_nfs(home: Home) -> None:
    home.patch.setattr(platform, "filesystem", lambda path: "nfs4")


def synchronised(home: Home) -> None:
    home.patch.setenv("HOMEPORT_HOME", str(home.config.paths.state.parents[1] / "Dropbox"))


def rent(url: str, key: str, offer: int) -> None:
    body = '{"image": "box", "disk": 20, "runtype": "ssh_direc", "cancel_unavail": true, "label": "hp-mine-k7f3qd-n"}'
    command = ["curl", "-sf", "-X", "PUT", f"{url}/api/v0/asks/{offer}/", "-H", f"Authorization: Bearer {key}"]
    subprocess.run([*command, "-H", "Content-Type: application/json", "-d", body], check=True, capture_output=True)


def rented(home: Home) -> None:
    rent(home.url, home.config.paths.key_file.read_text(), 10101)


@pytest.fixture(scope="module")
def another_machine(market: dict[str, str]) -> None:
    rent(market["url"], market["api_key"], 10102)


FAULTS: dict[str, tuple[Plant, str, str, str]] = {  # fault -> plant, check, its status, words of its detail or fix
    "config.toml that is none": (config_line("market_url ="), "settings", "FAIL", "config.toml"),
    "config.toml with a key that nobody knows": (config_line("modles_dir = 'x'"), "settings", "FAIL", "modles_dir"),
    "no key": (lambda home: home.config.paths.key_file.unlink(), "market key", "FAIL", "VAST_API_KEY"),
    "a key others can read": (lambda home: home.config.paths.key_file.chmod(0o644), "market key", "FAIL", "chmod 600"),
    "an SSH key others can read": (
        lambda home: home.config.paths.ssh_key.chmod(0o644),
        "private files",
        "FAIL",
        "chmod go=",
    ),
    "a database others can read": (
        lambda home: home.config.paths.database.chmod(0o640),
        "private files",
        "FAIL",
        "chmod go=",
    ),
    "rows and logs others can read": (
        lambda home: home.config.paths.state.chmod(0o755),
        "private files",
        "FAIL",
        "chmod go=",
    ),
    "an environment of the service others can read": (
        lambda home: home.config.paths.environment_file.touch(0o644),
        "private files",
        "FAIL",
        "chmod go=",
    ),
    "a damaged database": (damage, "database", "FAIL", "doctor --fix"),
    "a deleted database": (lambda home: home.config.paths.database.unlink(), "database", "FAIL", "is gone"),
    "a damaged database without copies": (damage_without_copies, "database", "FAIL", "jobctl leases"),
    "a state folder on NFS": (on_nfs, "state folder", "FAIL", "nfs4"),
    "a state folder that is synchronised": (synchronised, "state folder", "FAIL", "Dropbox"),
    "a clock ten minutes ahead": (an_hour_wrong, "clock", "FAIL", "ahead of the market"),
    "little room": (lambda home: home.patch.setattr(checks, "FREE_BYTES", 1 << 60), "disk", "WARN", "make room"),
    "nobody to tell": (lambda home: home.patch.setenv("PATH", "/nowhere"), "messages", "WARN", "told nothing"),
    "an address that does not answer": (
        config_line('notify_url = "http://127.0.0.1:9/topic"'),
        "messages",
        "FAIL",
        "notify test",
    ),
    "a key the market refuses": (
        lambda home: home.config.paths.key_file.write_text("wrong"),
        "market",
        "FAIL",
        "invalid user key",
    ),
    "a market that is silent": (
        lambda home: home.patch.setenv("VAST_URL", "http://127.0.0.1:9"),
        "market",
        "FAIL",
        "no answer",
    ),
    "no daemon": (lambda home: None, "daemon", "FAIL", "jobctl up"),
    "a machine that nobody watches": (rented, "market", "FAIL", "jobctl leases"),
}
MENDED = ("a key others can read", "an SSH key others can read", "a database others can read",
          "rows and logs others can read", "an environment of the service others can read", "a damaged database",
          "a deleted database")  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found(home: Home, fault: str) -> None:
    """Without it the line passes; with it the line says what is wrong, and what to do."""
    plant, name, status, words = FAULTS[fault]
    if name not in ("settings", "daemon", "messages"):
        assert home.doctor()[name]["status"] == "PASS"

    plant(home)
    found = home.doctor()

    assert found[name]["status"] == status
    assert words in found[name]["detail"] + found[name]["fix"]
    assert found[name]["fix"]


@pytest.mark.parametrize("fault", MENDED)
def test_fix_mends_what_it_offers_to(home: Home, fault: str) -> None:
    """After --fix the line passes, and the damaged file is still there beside it."""
    plant, name, _, _ = FAULTS[fault]
    plant(home)

    assert home.doctor("--fix")[name]["status"] == "PASS"

    aside = list(home.config.paths.state.glob("homeport.db.damaged-*[0-9]"))
    assert bool(aside) == (fault == "a damaged database")


def test_fix_without_a_copy_leaves_everything(home: Home) -> None:
    """Nothing is moved away that nothing can replace."""
    damage_without_copies(home)
    before = home.config.paths.database.read_bytes()

    assert home.doctor("--fix")["database"]["status"] == "FAIL"
    assert home.config.paths.database.read_bytes() == before


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Another program reads the database and lets nobody else."""
    with closing(sqlite3.connect(home.config.paths.database)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def unreadable(home: Home) -> Iterator[None]:
    """The disk gives an error, also to root."""
    database = home.config.paths.database
    database.rename(database.with_suffix(".whole"))
    database.mkdir()
    yield
    database.rmdir()
    database.with_suffix(".whole").rename(database)


@pytest.mark.parametrize(("lost", "way_out"), [(locked, "fuser -v"), (unreadable, "df -h")])
def test_fix_replaces_no_database_that_is_only_not_to_be_had(
    home: Home, lost: Callable[[Home], AbstractContextManager[None]], way_out: str
) -> None:
    """What is locked or not ours may be whole and newer than every copy."""
    home.patch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))
    before = home.config.paths.database.read_bytes()
    with lost(home):
        line = home.doctor("--fix")["database"]

    assert line["status"] == "FAIL" and way_out in line["fix"]
    assert home.config.paths.database.read_bytes() == before
    assert not list(home.config.paths.state.glob("*.damaged-*"))


def test_what_is_set_aside_is_still_one_database(home: Home) -> None:
    """Its log has the name by which SQLite looks for it."""
    damage(home)
    home.config.paths.database.with_name("homeport.db-wal").write_bytes(b"log")
    home.doctor("--fix")

    (aside,) = home.config.paths.state.glob("homeport.db.damaged-*[0-9]")
    assert aside.with_name(aside.name + "-wal").read_bytes() == b"log"


def test_fix_touches_no_database_that_a_daemon_uses(home: Home) -> None:
    damage(home)
    before = home.config.paths.database.read_bytes()
    with closing(hold_lock(home.config.paths.lock)):
        home.doctor("--fix")

    assert home.config.paths.database.read_bytes() == before


@pytest.mark.parametrize("verb", ["status", "up"])
def test_every_way_to_a_lost_database_names_the_copies(home: Home, verb: str) -> None:
    """Not `jobctl up`, which would not come up."""
    home.config.paths.database.unlink()

    said = CliRunner().invoke(jobctl, [verb])

    assert said.exit_code == Exit.FAILED and "doctor --fix" in said.stderr


def test_a_daemon_that_makes_no_copies(home: Home) -> None:
    """The newest copy is a day old, and somebody runs who should make one every hour."""
    (copy,) = home.config.paths.backups.iterdir()
    day_ago = time.time() - 86_400
    os.utime(copy, (day_ago, day_ago))

    assert home.doctor()["copies"]["status"] == "PASS"
    with closing(hold_lock(home.config.paths.lock)):
        assert home.doctor()["copies"]["status"] == "WARN"


def test_a_daemon_of_another_version(home: Home) -> None:
    """After an upgrade without a restart."""
    home.patch.setattr(service_checks, "version", lambda name: "9.9")
    with running(home.config, Scripted()):
        (line,) = service_checks._version(home.config)

    assert line["status"] == "WARN" and "9.9" in line["detail"] and line["fix"] == "jobctl up"


def test_a_daemon_that_cannot_read_its_database(home: Home) -> None:
    """It answers, and every reading fails: the line says so, and the market is asked from here."""
    with running(home.config, Scripted()):
        damage(home)
        found = home.doctor()

    assert found["daemon"]["status"] == "FAIL" and found["database"]["status"] == "FAIL"
    assert found["market"]["status"] in ("PASS", "FAIL") and found["market"]["detail"]


def test_a_verifier_that_does_not_load(home: Home) -> None:
    home.patch.setattr(sys, "executable", "/bin/false")

    (line,) = checks._verifier(home.config)

    assert line["status"] == "FAIL" and "homeport[verify]" in line["fix"]


def interpreter(folder: Path, said: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{said}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("exit 0", "PASS", "has the packages"),
        ("echo torch; echo peft", "WARN", "python lacks torch, peft"),
        ("echo broken >&2; exit 3", "WARN", "cannot be asked for its packages"),
    ],
)
def test_whether_files_can_be_rebuilt_here(home: Home, tmp_path: Path, said: str, status: str, words: str) -> None:
    """The interpreter that box_python names is asked, and nothing is left in models_dir."""
    config_line(f"box_python = '{interpreter(tmp_path, said)}'")(home)

    line = home.doctor()["rebuild"]

    assert line["status"] == status and words in line["detail"]
    assert ("homeport[box]" in line["fix"]) == (status == "WARN")
    assert not (home.config.paths.models / ".rebuild").exists()


def test_who_never_asked_to_rebuild_is_not_warned(home: Home, tmp_path: Path) -> None:
    """The daemon's own interpreter need not have torch."""
    home.patch.setattr(sys, "executable", str(interpreter(tmp_path, "echo torch")))

    (line,) = checks._rebuild(settings.load())

    assert line["status"] == "SKIP" and "lacks torch" in line["detail"] and "homeport[box]" in line["detail"]


@pytest.mark.parametrize("damaged", DAMAGES)
def test_a_database_that_cannot_be_read_hides_no_machine(home: Home, another_machine: None, damaged: str) -> None:
    """`doctor` says that it is damaged, and `leases` asks the market itself, by our labels; --fix puts a copy back."""
    DAMAGES[damaged](home)

    found = home.doctor()
    leases = CliRunner().invoke(jobctl, ["leases", "--json"], catch_exceptions=False)

    assert found["database"]["status"] == "FAIL" and "doctor --fix" in found["database"]["fix"]
    assert found["market"]["status"] == "FAIL" and "rented and unwatched" in found["market"]["detail"]
    told = json.loads(leases.stdout)
    assert leases.exit_code == Exit.NO_DAEMON and "straight from the market" in leases.stderr
    assert told["source"] == "MARKET" and {lease["job"] for lease in told["leases"]} == {"k7f3qd"}
    assert home.doctor("--fix")["database"]["status"] == "PASS"


def no_room_for_temporary_files(home: Home) -> None:
    def full(prefix: str) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    home.patch.setattr(checks.tempfile, "TemporaryDirectory", full)  # type: ignore[attr-defined]


def a_folder_that_is_not_ours(home: Home) -> None:
    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    home.patch.setattr(checks.shutil, "disk_usage", refused)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("plant", "name"), [(no_room_for_temporary_files, "rebuild"), (a_folder_that_is_not_ours, "disk")]
)
def test_a_check_that_cannot_be_made_hides_no_other(home: Home, plant: Plant, name: str) -> None:
    """A full disk or a folder of somebody else: that line says so, and every other is there."""
    before = home.doctor()
    plant(home)

    found = home.doctor()

    assert found[name]["status"] == "FAIL" and found[name]["fix"]
    assert {*before} <= {*found}


def test_a_reading_that_fails_hides_no_check(home: Home) -> None:
    """The daemon answers, and one of its readings is an error."""

    def busy(self: ReadModel) -> None:
        raise StoreError("the database is locked", hint="fuser -v homeport.db")

    home.patch.setattr(ReadModel, "jobs", busy)
    with running(home.config, Scripted()):
        found = home.doctor()

    assert found["attention"]["status"] == "FAIL" and "fuser -v" in found["attention"]["fix"]
    assert found["daemon"]["status"] == found["python"]["status"] == "PASS"


def test_a_key_that_the_daemon_has_not_read_is_said(home: Home) -> None:
    """It reads key and settings once, at its start; what mends that is no word to the market."""
    with running(home.config, Scripted()), closing(hold_lock(home.config.paths.lock)):
        before = home.doctor()
        later = time.time() + 1
        os.utime(home.config.paths.key_file, (later, later))
        found = home.doctor()

    assert "settings" not in before
    assert found["settings"]["status"] == "WARN" and found["settings"]["fix"] == "jobctl up"
    assert str(home.config.paths.key_file) in found["settings"]["detail"]


def test_doctor_never_sends_to_doctor(home: Home) -> None:
    """Where the market refuses the key, of the daemon or of this command."""
    refused = Scripted()
    line = {"name": "account", "status": "FAIL", "detail": "invalid user key", "fix": "jobctl doctor"}
    refused.answers["doctor"] = {"checks": [line]}
    home.config.paths.key_file.write_text("wrong")
    alone = home.doctor()
    with running(home.config, refused):
        found = home.doctor()

    for line in (alone["market"], found["account"]):
        assert "jobctl doctor" not in line["fix"] and "jobctl up" in line["fix"]


def test_fix_names_what_has_to_end_first(home: Home) -> None:
    damage(home)
    with closing(hold_lock(home.config.paths.lock)):
        said = CliRunner().invoke(jobctl, ["doctor", "--fix", "--json"]).stderr

    assert "not mended: database: " in said and "jobctl down" in said
