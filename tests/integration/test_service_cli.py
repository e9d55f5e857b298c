"""`up`, `down` and doctor's line for the service, against a stand-in for systemd; and what is said to bill."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted import CANARY, Run, Scripted
from stored import HOUR, NOW, Stored

from daemon.cli import service, straight
from daemon.control.leadership import hold_lock
from daemon.service import systemd
from daemon.settings import Settings
from daemon.store import backups, high_water
from daemon.store.readonly import ReadModel

DAY = 24 * HOUR
SYSTEMCTL = """#!/bin/sh
case "$2" in
    is-active) echo active ;;
    is-enabled) echo enabled ;;
    --version) echo "systemd 252" ;;
esac
"""


@pytest.fixture(autouse=True)
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `systemctl` that calls every unit running and enabled, and the folder of users whose services linger."""
    tool = tmp_path / "bin" / "systemctl"
    tool.parent.mkdir()
    tool.write_text(SYSTEMCTL)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("daemon.platform.user_name", lambda: "ann")
    monkeypatch.setattr(systemd, "LINGERING", tmp_path / "linger")
    _processes(monkeypatch, count(1))  # what answers is always another one
    (tmp_path / "linger").mkdir()
    return tmp_path / "linger"


def _processes(monkeypatch: pytest.MonkeyPatch, numbers: Iterator[int]) -> None:
    """As which process the daemon answers, each time that it is asked."""
    monkeypatch.setattr("daemon.api.routes.os", SimpleNamespace(getpid=lambda: next(numbers)))


@pytest.mark.parametrize("lingers", [False, True])
def test_who_logs_out_is_told_what_ends(run: Run, commands: Scripted, manager: Path, lingers: bool) -> None:
    """`up` and doctor advise the command that keeps the service, exactly while it would end with the log-out."""
    if lingers:
        (manager / "ann").touch()

    up, doctor = run("up"), run("doctor")

    assert up.exit_code == 0, up.output
    assert ("note        it ends when you log out; to keep it: loginctl enable-linger ann" in up.stdout) is not lingers
    lines = doctor.stdout.splitlines()
    advised = [number for number, line in enumerate(lines) if line.startswith("WARN") and "log-out" in line]
    assert bool(advised) is not lingers
    for number in advised:
        assert "it ends when you log out" in lines[number]
        assert "loginctl enable-linger ann" in lines[number] + lines[number + 1]


def test_the_service_has_what_is_set_here(
    run: Run, commands: Scripted, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of a job's own board, too; what an earlier `up` knew and this shell does not is named, never its value."""
    monkeypatch.setenv("WANDB_API_KEY", CANARY)

    first = run("up")
    kept = config.paths.environment_file.read_text()
    monkeypatch.delenv("WANDB_API_KEY")
    second, third = run("up"), run("up")

    assert f"WANDB_API_KEY={CANARY}\n" in kept
    assert "WANDB_API_KEY" not in first.output and "WANDB_API_KEY" not in third.output
    assert "note        WANDB_API_KEY is not set here: the service has it no more" in second.stdout
    assert CANARY not in second.output


@pytest.mark.parametrize("by_hand", [True, False])
def test_without_a_service_manager(run: Run, config: Settings, stored: Stored, tmp_path: Path, by_hand: bool) -> None:
    """`up` and `down` name the daemon that runs by hand and how to end it; `down` lists what bills in any case."""
    (tmp_path / "bin" / "systemctl").write_text("#!/bin/sh\necho Failed to connect to bus >&2; exit 1\n")
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd")
    with closing(hold_lock(config.paths.lock)) if by_hand else nullcontext():
        up, down = run("up"), run("down")

    for result in (up, down):
        assert result.exit_code == 1
        assert (f"kill {os.getpid()}" in result.stderr) is by_hand
        assert ("Failed to connect to bus" in result.stderr) is not by_hand
    assert "bills on    instance 29481133  0.40/h  job k7f3qd\n" in down.stdout
    assert ("nobody watches these machines" in down.stdout) is not by_hand


def test_what_may_bill_is_named(run: Run, stored: Stored) -> None:
    """A machine that bills, a rental without an answer, and a machine that was written off: `down` and `leases` name
    each, and neither says that nothing is rented."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd")
    stored.job("m2x9ab")
    stored.operation("create", "UNKNOWN", job_id="m2x9ab")
    stored.job("z8h1wr", state="ABANDONED")
    stored.lease("z8h1wr", instance_id=4711, state="WRITTEN_OFF", gone_at=NOW, price_per_hour=1_250_000)
    stored.listing()

    down, leases = run("down").stdout, " ".join(run("leases").stdout.split())

    assert "bills on    instance 29481133  0.40/h  job k7f3qd\n" in down
    assert "may bill    m2x9ab: the reply to a rental was lost" in down
    assert "may bill    instance 4711 was written off" in down
    assert "0.40/h goes on" in down
    assert "Renting 1 machine, $0.40/h" in leases and "Beside it 2 may bill." in leases
    assert "! m2x9ab: the reply to a rental was lost" in leases
    assert "! instance 4711 was written off" in leases and "may bill $1.25" in leases
    assert "and 3 machines may be billing" in leases
    assert "Nothing is being rented" not in down + leases


@pytest.mark.parametrize("state", ["SENT", "UNKNOWN"])
def test_a_rental_without_an_answer_is_not_nothing(run: Run, stored: Stored, state: str) -> None:
    """Also that of a daemon that was ended while it waited for the answer."""
    stored.job("m2x9ab")
    stored.operation("create", state, job_id="m2x9ab")

    for verb in ("down", "leases", "status"):
        said = run(verb).stdout
        assert "m2x9ab" in said and "may bill" in " ".join(said.split()), verb
        assert "Nothing is being rented" not in said, verb


@pytest.mark.parametrize(
    ("listed", "named"),
    [(NOW, True), (NOW - DAY + HOUR, True), (NOW - DAY - HOUR, False)],
    ids=["now", "within a day", "longer ago"],
)
def test_a_written_off_machine_is_named_until_it_is_gone_for_a_day(
    run: Run, stored: Stored, listed: int, named: bool
) -> None:
    """By the market's listings; without a job it is named all the same."""
    stored.lease(None, instance_id=4711, state="WRITTEN_OFF", last_seen=listed, gone_at=NOW - 9 * DAY)
    stored.listing()

    for verb in ("down", "leases", "status"):
        said = run(verb).stdout
        assert ("4711" in said) is named, said
        assert ("Nothing is being rented." in said) is not named, said


@pytest.mark.parametrize("state", [None, "ABSENT", "REFUSED"])
def test_nothing_is_rented_where_nothing_is(run: Run, stored: Stored, state: str | None) -> None:
    """A machine that is gone and a rental that was refused or never happened are not named."""
    stored.job("k7f3qd")
    stored.lease("k7f3qd", state="GONE", gone_at=NOW)
    if state:
        stored.operation("create", state, job_id="k7f3qd")

    for verb in ("down", "leases"):
        said = run(verb).stdout
        assert "Nothing is being rented. $0.00/h." in said and "may bill" not in said


def test_down_asks_the_market_where_the_database_cannot_say(
    run: Run, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged database hides no machine: what the market lists under our labels is named."""
    stored.job("k7f3qd")
    stored.lease("k7f3qd")
    listed = ReadModel(stored.path, stored.path.parent).leases()
    monkeypatch.setattr(straight, "leases", lambda loaded: listed)
    stored.path.write_bytes(b"\xa5" * 8192)

    down = run("down")

    assert down.exit_code == 0 and "straight from the market" in down.stderr
    assert "bills on    instance 29481133  0.40/h  job k7f3qd\n" in down.stdout


@pytest.fixture
def restarts(tmp_path: Path) -> Path:
    """A line for each time that the service was started anew."""
    tool, log = tmp_path / "bin" / "systemctl", tmp_path / "restarts"
    log.touch()
    tool.write_text(SYSTEMCTL.replace("esac", f'    restart) echo x >>"{log}" ;;\nesac'))
    return log


@pytest.mark.parametrize("changed", ["config.toml", "vast_api_key", "the market's own file"])
def test_up_takes_over_what_the_daemon_read_at_its_start(
    run: Run,
    commands: Scripted,
    config: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    restarts: Path,
    changed: str,
) -> None:
    """A key or a setting that was mended after the start: the daemon is started anew, and only once."""
    monkeypatch.delenv("VAST_API_KEY")
    file = {
        "config.toml": config.paths.config_file,
        "vast_api_key": config.paths.key_file,
        "the market's own file": tmp_path / "xdg/vastai/vast_api_key",
    }[changed]
    if changed != "config.toml":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text("an-old-key")
    else:
        monkeypatch.setenv("VAST_API_KEY", CANARY)
    assert run("up").exit_code == 0
    began = time.time() + 1
    config.paths.lock.touch()
    os.utime(config.paths.lock, (began, began))
    restarts.write_text("")
    assert run("up").exit_code == 0 and restarts.read_text() == ""

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('notify_url = "https://ntfy.sh/x"\n' if changed == "config.toml" else "a-new-key")
    os.utime(file, (began + 1, began + 1))
    assert run("up").exit_code == 0

    assert restarts.read_text() == "x\n"


def test_up_believes_no_daemon_that_is_about_to_end(
    run: Run, commands: Scripted, monkeypatch: pytest.MonkeyPatch, restarts: Path
) -> None:
    """What it started has to answer, not what it asked to end: that may answer for seconds."""
    _processes(monkeypatch, repeat(1))
    monkeypatch.setattr(service, "ANSWERS_WITHIN_S", 1.0)
    monkeypatch.setattr(service, "version", lambda name: "0.2.0")

    up = run("up")

    assert restarts.read_text() == "x\n"
    assert up.exit_code == 1 and "running" not in up.stdout
    assert "the daemon that ran before still answers" in up.stderr


@pytest.mark.parametrize("left", ["high-water", "copies"])
def test_down_asks_the_market_where_the_database_is_gone(
    run: Run, stored: Stored, config: Settings, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """What an installation left behind says that machines may be rented."""
    stored.job("k7f3qd")
    stored.lease("k7f3qd")
    listed = ReadModel(stored.path, stored.path.parent).leases()
    monkeypatch.setattr(straight, "leases", lambda loaded: listed)
    if left == "copies":
        backups.write(stored.path, config.paths.backups / "homeport-1.db")
    else:
        high_water.write(stored.path.with_name(high_water.NAME), high_water.HighWater(1, 0, "machine"))
    stored.path.unlink()

    assert "bills on    instance 29481133  0.40/h  job k7f3qd\n" in run("down").stdout
