"""No answer, address or setting ends `jobctl doctor`, or any verb, in a trace."""

from __future__ import annotations

import http.client
import shlex
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.cli import checks, market_checks, message_checks
from daemon.errors import HomeportError, from_system
from daemon.settings import Paths, Settings, api_key, load


def settings(folder: Path, **values: Any) -> Settings:
    return Settings(Paths(folder, folder, folder), **values)


@pytest.mark.parametrize("error", [http.client.BadStatusLine("SSH-2.0"), http.client.IncompleteRead(b"")])
def test_a_market_that_speaks_something_else_is_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("urllib.request.urlopen", refuse)

    assert [check["status"] for check in market_checks.clock(settings(tmp_path))] == ["SKIP"]


@pytest.mark.parametrize("date", ["soon", "Sun, 29 Nov 99999 16:40:41 GMT", "Sun, 29 Nov 2026 16:40:41 -0000"])
def test_a_date_that_tells_no_time_is_no_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, date: str) -> None:
    """One of no zone was read as local time: hours off, wherever that is not UTC."""

    class Reply(SimpleNamespace):
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *why: Any) -> None:
            pass

    headers = Message()
    headers["Date"] = date
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **options: Reply(headers=headers))

    assert [check["status"] for check in market_checks.clock(settings(tmp_path))] == ["SKIP"]


def test_an_address_that_is_none_is_a_failed_check(tmp_path: Path) -> None:
    [found] = message_checks.told(settings(tmp_path, notify_url="https://[half/topic"))

    assert found["status"] == "FAIL" and "notify_url" in found["fix"]


@pytest.mark.parametrize(
    ("text", "env"),
    [
        ("", {"VAST_URL": "http://[::1"}),
        ("", {"VAST_URL": "http://127.0.0.1:99999"}),
        ('market_url = "http://[::1"', {}),
        ('[image]\ncuda = "thirteen"', {}),
        ("[image]\nroot = 5", {}),
        ('demo = "false"', {}),
        ("notify_url = 5", {}),
        ("models_dir = 5", {}),
    ],
)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, text: str, env: dict[str, str]) -> None:
    """In a sentence with its name, before any verb begins."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.toml").write_text(text)

    with pytest.raises(HomeportError) as caught:
        load({"HOMEPORT_HOME": str(tmp_path), **env})

    name = (text or "VAST_URL").replace("[image]\n", "").split(" ")[0]
    assert name in str(caught.value)


def test_a_command_to_type_takes_a_folder_with_a_space(tmp_path: Path) -> None:
    """As on macOS, where all of ours lie in `Application Support`."""
    where = Paths(*(tmp_path / "Application Support" / name for name in ("config", "state", "models")))
    for folder in (where.config, where.state):
        folder.mkdir(parents=True, mode=0o755)
    where.key_file.write_text("k")
    where.key_file.chmod(0o644)
    with pytest.raises(HomeportError) as caught:
        api_key(where, {"HOME": str(tmp_path)})
    [found] = checks._private_files(Settings(where))
    unreadable = from_system(PermissionError(13, "Permission denied", str(where.key_file)))

    assert shlex.split(caught.value.hint) == ["chmod", "600", str(where.key_file)]
    assert shlex.split(found["fix"]) == ["chmod", "go=", str(where.state), str(where.key_file)]
    assert shlex.split(unreadable.hint)[:4] == ["ls", "-ld", str(where.config), str(where.key_file)]
