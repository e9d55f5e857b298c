"""`wait` and `logs -f` while nobody is there who could change anything."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.cli import follow
from daemon.cli.exits import Exit
from daemon.cli.screens import jobs
from daemon.cli.source import Reading
from daemon.errors import DaemonUnreachable


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who answers each reading of a job in SFT; the last one goes on answering."""
    sources = ["DATABASE"]

    def read(ask: Any) -> Reading[Any]:
        who = sources.pop(0) if len(sources) > 1 else sources[0]
        job = {"id": "k7f3qd", "state": "SFT", "hold": None}
        return Reading({"job": job, "text": "", "offset": 0}, source=who, demo=False)

    monkeypatch.setattr(follow, "read", read)
    monkeypatch.setattr(follow, "POLL_S", 0.01)
    monkeypatch.setattr(follow, "ABSENT_S", 0.1, raising=False)
    monkeypatch.setattr(jobs, "state", lambda view: view["state"])
    return sources


@pytest.mark.parametrize("before", [[], ["DAEMON", "DATABASE", "DAEMON"]], ids=["down", "it died meanwhile"])
def test_a_wait_ends_where_no_daemon_is(source: list[str], before: list[str]) -> None:
    """A script is not left waiting for ever, without a word, for what nobody does."""
    source[:0] = before

    with pytest.raises(DaemonUnreachable) as caught:
        follow.wait_for("k7f", "DESTROYED", timeout_s=2.0)

    assert caught.value.exit_code == Exit.NO_DAEMON


def test_a_daemon_that_is_back_is_waited_for(source: list[str]) -> None:
    source[:] = ["DATABASE", "DATABASE", "DAEMON"]

    assert follow.wait_for("k7f", "DESTROYED", timeout_s=0.3) is Exit.TIMED_OUT


def test_a_followed_log_ends_likewise(source: list[str]) -> None:
    with pytest.raises(DaemonUnreachable):
        follow._go_on("k7f3qd", 0)
