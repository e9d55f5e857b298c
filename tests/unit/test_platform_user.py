"""A user whom no list knows, as in a container or under cron."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from daemon import platform
from daemon.cli.jobctl import jobctl


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_it_has_a_name_all_the_same() -> None:
    """Python 3.13 raises OSError there, those before it KeyError."""
    assert platform.user_name() == f"uid {os.getuid()}"


@pytest.mark.parametrize(
    "args",
    [["hold", "k7f"], ["resume", "k7f"], ["write-off", "7", "--confirm", "7"], ["pull", "k7f"]],
    ids=lambda args: args[0],
)
def test_a_verb_asks_the_daemon(args: list[str], tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """And does not end in a trace before that: here there is no daemon."""
    monkeypatch.setenv("HOMEPORT_HOME", str(tmp_path))

    assert CliRunner().invoke(jobctl, args).exit_code == 4
