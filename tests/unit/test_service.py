"""The background service as it is written down for each system, and what is said to systemd."""

from __future__ import annotations

import os
import plistlib
import shutil
import socket
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.errors import Refused
from daemon.service import launchd, program, systemd, task_scheduler
from daemon.service.holder import holder
from daemon.service.notify_socket import teller
from daemon.service.program import Program, of, read_environment, write_environment
from daemon.service.system import put
from daemon.settings import Paths

SECRET = "canary-4711"
NAMESPACE = {"t": task_scheduler.NAMESPACE}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(config=tmp_path / "my config", state=tmp_path / "state", models=tmp_path / "models")


@pytest.fixture
def one(paths: Paths) -> Program:
    return of(paths, {})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_the_unit_passes_systemds_own_check(one: Program, tmp_path: Path) -> None:
    """Every section and key is one that systemd knows."""
    unit = tmp_path / "homeport.service"
    unit.write_text(systemd.render(one))

    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)], capture_output=True, text=True,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}, check=False,
    )  # fmt: skip

    assert "homeport.service" not in done.stderr, done.stderr


def test_the_unit_quotes_what_systemd_reads(paths: Paths) -> None:
    """A folder with a space, a percent sign or a dollar is one word, as it is."""
    strange = Program("x", ("/opt/a b/python", "100%", "$HOME"), paths.config, paths.state)

    assert "ExecStart='/opt/a b/python' 100%% '$$HOME'" in systemd.render(strange)


def test_the_agent_is_a_property_list(one: Program) -> None:
    """Started at log-in, started anew after a failure alone, and not in a tight loop."""
    agent = plistlib.loads(launchd.render(one).encode())

    assert agent["ProgramArguments"] == list(one.command)
    assert (agent["RunAtLoad"], agent["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert agent["ThrottleInterval"] >= 30


def test_the_task_switches_windows_defaults_off(one: Program) -> None:
    """No end after 72 hours, none on battery, never two, started anew for ever; elements in the order of the schema."""
    task = ET.fromstring(task_scheduler.render(one))
    settings = task.find("t:Settings", NAMESPACE)
    assert settings is not None
    names = [element.tag.partition("}")[2] for element in settings]
    parts = [element.tag.partition("}")[2] for element in task]
    triggers = task.find("t:Triggers", NAMESPACE)
    assert triggers is not None
    arguments = task.findtext("t:Actions/t:Exec/t:Arguments", namespaces=NAMESPACE)

    assert parts == ["RegistrationInfo", "Triggers", "Principals", "Settings", "Actions"]
    assert names == [*task_scheduler.SETTINGS, "RestartOnFailure"]
    assert [[element.tag.partition("}")[2] for element in trigger] for trigger in triggers] == [
        ["Enabled", "Repetition"],
        ["Enabled", "Repetition", "UserId"],
    ]
    assert {each.text for each in triggers.findall("t:*/t:Repetition/t:Interval", NAMESPACE)} == {"PT1M"}
    assert triggers.find("t:*/t:Repetition/t:Duration", NAMESPACE) is None  # for ever
    assert settings.findtext("t:ExecutionTimeLimit", namespaces=NAMESPACE) == "PT0S"
    assert settings.findtext("t:StopIfGoingOnBatteries", namespaces=NAMESPACE) == "false"
    assert settings.findtext("t:MultipleInstancesPolicy", namespaces=NAMESPACE) == "IgnoreNew"
    assert arguments is not None and f'"{one.environment_file}"' in arguments


@pytest.mark.parametrize("render", [systemd.render, launchd.render, task_scheduler.render])
def test_no_secret_leaves_the_environment_file(render, paths: Paths) -> None:  # type: ignore[no-untyped-def]
    """The key is in one file, which only this user may read."""
    env = {"VAST_API_KEY": SECRET, "HOMEPORT_HOME": str(paths.config.parent), "PATH": "/bin"}
    one = of(paths, env)

    assert write_environment(one, env)
    assert not write_environment(one, env)

    assert SECRET not in render(one)
    assert read_environment(one.environment_file) == {k: env[k] for k in ("HOMEPORT_HOME", "VAST_API_KEY")}
    assert one.environment_file.stat().st_mode & 0o077 == 0


def test_an_environment_that_others_can_read_is_closed(one: Program) -> None:
    """Written anew by the next `up`, though nothing in it has changed: the daemon would refuse it."""
    write_environment(one, {"VAST_API_KEY": SECRET})
    one.environment_file.chmod(0o644)

    assert write_environment(one, {"VAST_API_KEY": SECRET})
    assert read_environment(one.environment_file) == {"VAST_API_KEY": SECRET}


def test_each_home_has_a_service_of_its_own(paths: Paths) -> None:
    """A second home never takes the first one's unit away."""
    other = Paths(paths.config, paths.state / "other", paths.models)
    names = {of(paths, {}).name, of(paths, {"HOMEPORT_HOME": "/a"}).name, of(other, {"HOMEPORT_HOME": "/b"}).name}

    assert len(names) == 3 and "homeport" in names


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [("LD_PRELOAD=/tmp/x.so\n", 0o600, ":1: not one of"), ("VAST_URL=x\n", 0o644, "can be read by others")],
)
def test_a_strange_environment_is_refused(tmp_path: Path, text: str, mode: int, said: str) -> None:
    """Only our own variables, from a file that only this user can read."""
    file = tmp_path / "service.env"
    file.write_text(text)
    file.chmod(mode)

    with pytest.raises(Refused, match=said):
        read_environment(file)


def test_several_lines_are_no_value(one: Program) -> None:
    """A value with a line break would be read as a second variable."""
    with pytest.raises(Refused, match="VAST_URL"):
        write_environment(one, {"VAST_URL": "x\nVAST_API_KEY=y"})
    assert set(program.CARRIED) >= {"VAST_API_KEY", "HOMEPORT_HOME"}


FOUND_BY = {"XDG_STATE_HOME": "/x/state", "XDG_CONFIG_HOME": "/x/config", "HF_HOME": "/x/hub"}


@pytest.mark.parametrize(
    "env",
    [FOUND_BY, {"https_proxy": "http://proxy:1"}, {"HTTP_PROXY": "http://p:1", "NO_PROXY": "a"}, {"all_proxy": "x"}],
    ids=" ".join,
)
def test_the_service_finds_what_the_command_finds(one: Program, env: dict[str, str]) -> None:
    """The same folders and the same way out: else `up` waits for a daemon that leads another home."""
    write_environment(one, env)

    assert read_environment(one.environment_file) == env


@pytest.mark.parametrize("value", ["/a\u2028b", "/a\x0cb", "/a\x85b"])
def test_a_value_of_one_line_is_read_as_one(one: Program, value: str) -> None:
    """Python knows more ends of a line than the two that are refused; the daemon would refuse its own file."""
    write_environment(one, {"SSL_CERT_FILE": value, "VAST_API_KEY": SECRET})

    assert read_environment(one.environment_file) == {"SSL_CERT_FILE": value, "VAST_API_KEY": SECRET}


def test_systemd_never_gives_up(one: Program) -> None:
    """A disk that is full for some minutes ends each start: afterwards somebody has to watch what is rented."""
    unit = systemd.render(one)

    assert "StartLimitIntervalSec=0\n" in unit and "StartLimitBurst" not in unit
    assert "\nRestartSec=15\n" in unit


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_it(tmp_path: Path, abstract: bool) -> None:
    """One datagram a call, at a path or under an abstract name."""
    name = f"@homeport-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)

        teller({"NOTIFY_SOCKET": name})("READY=1", "STATUS=fine")

        assert listener.recv(1000) == b"READY=1\nSTATUS=fine"


def test_a_deaf_manager_does_no_harm(tmp_path: Path) -> None:
    """Nobody at the address, or no address at all: the daemon goes on."""
    teller({"NOTIFY_SOCKET": str(tmp_path / "nobody")})("WATCHDOG=1")
    teller({})("WATCHDOG=1")


def test_the_holder_is_named_while_it_holds(paths: Paths) -> None:
    """The lock decides, not the number that an ended daemon left in its file, nor what else is in it."""
    from daemon.control.leadership import hold_lock

    assert holder(paths) is None
    lock = hold_lock(paths.lock)
    assert holder(paths) == str(os.getpid())
    paths.lock.write_bytes(b"\xff\x00\x1b[2J")
    assert holder(paths) == "unknown"
    with pytest.raises(Refused, match="pid unknown"):
        hold_lock(paths.lock)
    lock.close()
    assert holder(paths) is None


def test_a_full_disk_leaves_the_unit_that_was_there(one: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a unit would start nothing at the next log-in."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(one.log.parent))
    file = systemd.file(one)
    file.parent.mkdir(parents=True)
    file.write_text("the one before")
    monkeypatch.setattr(systemd, "install", lambda program: None)
    monkeypatch.setattr("daemon.platform.sync_file", _full)

    with pytest.raises(OSError, match="No space left"):
        put(systemd, one)
    assert file.read_text() == "the one before"


def _full(fd: int) -> None:
    raise OSError(28, "No space left on device")


def test_where_the_agent_logs_can_be_typed(paths: Paths) -> None:
    """The folder's own name has a space in it on macOS."""
    spaced = of(replace(paths, state=Path("/Users/ann/Library/Application Support/homeport")), {})

    assert launchd.log_command(spaced) == "tail '/Users/ann/Library/Application Support/homeport/service.out'"
