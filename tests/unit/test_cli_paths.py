"""Paths as the person types them: whatever is wrong with one, a line names it, and no trace of Python is shown."""

from __future__ import annotations

import errno
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from store import add_job, opened

from daemon import app, platform, settings
from daemon.cli import demo
from daemon.cli.chaos import Chaos
from daemon.cli.jobctl import jobctl
from daemon.control.leadership import hold_lock
from daemon.errors import DaemonUnreachable, HomeportError, from_system

LONG = "x" * 300  # longer than any name may be


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a database, and a file where a folder would be needed."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    database = opened(settings.load().paths.state)
    with database.write() as c:
        add_job(c, "k7f3qd")
    database.close()
    (tmp_path / "file").write_text("version: 1\n")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    return tmp_path


def run(*args: str) -> Result:
    return CliRunner().invoke(jobctl, args)


TYPED = [
    (("import", "nosuch"), "nosuch", 2),
    (("import", "file/inside"), "file/inside", 2),
    (("import", LONG), LONG, 2),
    (("export", "nosuch/file"), "nosuch/file", 1),
    (("export", "file/inside"), "file/inside", 1),
    (("report", "k7f", "--to", "nosuch/file"), "nosuch/file", 1),
    (("verify", "nosuch.gguf"), "nosuch.gguf", 2),
    (("verify", LONG), LONG, 1),
    (("verify", "~nobody-of-this-name/m.gguf"), "~nobody-of-this-name/m.gguf", 2),
    (("verify", "file", "--base", "nosuch"), "nosuch", 2),
    (("submit", "nosuch.yaml"), "nosuch.yaml", 2),
    (("submit", "."), ".", 2),
    (("plan", "loop.yaml"), "loop.yaml", 2),
    (("plan", LONG), LONG, 2),
    (("adopt", "7", "nosuch.yaml"), "nosuch.yaml", 2),
    (("data-check", "nosuch.jsonl"), "nosuch.jsonl", 2),
    (("data-check", "loop.yaml"), "loop.yaml", 2),
    (("data-check", "file.jsonl", "--model", "nosuch"), "nosuch", 2),
    (("pull", "k7f", "--to", "file"), "file", 2),
    (("fetch", "--instance", "7", "--path", "x", "--to", "file"), "file", 2),
    (("sandbox", "serve", "--dir", "file/inside"), "file/inside", 1),
]


@pytest.mark.parametrize(("args", "named", "code"), TYPED, ids=[" ".join(row[0])[:60] for row in TYPED])
def test_a_path_that_cannot_be_used_is_named(args: tuple[str, ...], named: str, code: int) -> None:
    """In a line of standard error; nothing else went wrong on the way."""
    (Path("file.jsonl")).write_text('{"prompt": "a", "completion": "b"}\n')

    result = run(*args)

    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    said = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1 and named in said[0]


def test_a_full_disk_names_the_file_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own error names none."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(platform, "sync_file", full)

    result = run("export", "moved")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: moved: No space left on device\nTry:   df -h .   and make room there" in result.stderr
    assert not Path("moved").exists() and not Path("moved.new").exists()


def test_settings_that_cannot_be_read_are_named(home: Path) -> None:
    """A folder in place of config.toml."""
    where = settings.load().paths.config_file
    where.mkdir(parents=True)

    result = run("status")

    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: {where}: Is a directory" in result.stderr


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.EACCES, "Permission denied", "/s/lock"), "/s/lock: Permission denied", "ls -ld /s /s/lock "),
        (OSError(errno.ENOSPC, "No space left", "/s/x"), "/s/x: No space left", "df -h /s "),
        (OSError(errno.ENOENT, "No such file", "/s/x"), "/s/x: No such file", "jobctl pull --help"),
        (OSError(errno.ENOSPC, "No space left"), "No space left", "df -h"),
        (TimeoutError(), "TimeoutError", "jobctl pull --help"),
    ],
)
def test_what_the_system_refuses_is_named_with_a_way_out(error: OSError, message: str, hint: str) -> None:
    """A file that is not ours and a disk that is full are mended by no option of a verb."""
    shown = from_system(error, "jobctl pull --help")

    assert shown.message == message and shown.hint.startswith(hint)


def test_a_daemon_that_cannot_begin_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names the file, and one to type; no trace."""
    (tmp_path / "state").touch()  # a file where the folder belongs
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["jobd"])

    with pytest.raises(SystemExit) as caught:
        app.main()

    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1 and len(said) == 2
    assert said[0] == f"jobd: {tmp_path}/state: File exists" and said[1].startswith("Try: ")


@pytest.mark.parametrize("words", [("export", "moved"), ("import", "file")], ids=" ".join)
def test_what_has_to_end_first_is_said(words: tuple[str, ...]) -> None:
    """While a daemon runs; `jobctl status` would not help."""
    with closing(hold_lock(settings.load().paths.lock)):
        result = run(*words)

    assert result.exit_code == 1
    assert f"jobctl down, then jobctl {' '.join(words)}" in result.stderr


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has a number and no name."""
    monkeypatch.delenv("HOMEPORT_HOME")
    monkeypatch.setattr("posixpath.expanduser", lambda path: path)

    result = run("status")

    assert result.exit_code == 1 and "export HOMEPORT_HOME=" in result.stderr


def test_a_daemon_without_a_screen_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the Windows service runs it: there is no standard error at all."""
    shown, led = [], []

    async def lead(given: settings.Settings) -> None:
        led.append(given)

    monkeypatch.setattr(app, "lead", lead)
    monkeypatch.setattr(app.logging, "configure", lambda file, console: shown.append(console))  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", None)

    app.serve(settings.load())

    assert shown == [False] and len(led) == 1


def test_a_demo_whose_parts_end_sends_nobody_to_the_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`jobctl up`, which an absent daemon is mended with, would set up one that has nothing to do with it."""
    market = {"url": "http://127.0.0.1:9", "api_key": "k", "time_scale": 20}
    monkeypatch.setattr(demo, "_wait_for", lambda *_: None)
    monkeypatch.setattr(demo.sys, "executable", "/bin/true")  # type: ignore[attr-defined]

    with pytest.raises(HomeportError) as ended, demo._daemon(tmp_path, market):
        raise DaemonUnreachable("the daemon is not running", hint="jobctl up")
    with pytest.raises(HomeportError, match="local market does not answer"):
        Chaos(market)

    assert ended.value.hint == f"see {tmp_path / 'jobd.log'}"
