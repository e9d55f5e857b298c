"""The daemon's log file: JSON lines, private, without secrets."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest
import structlog

from daemon import log


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level, loud = root.handlers[:], root.level, logging.raiseExceptions
    log.configure(tmp_path / "state" / "jobd.log", console=False)
    yield tmp_path / "state" / "jobd.log"
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, logging.raiseExceptions = before, level, loud
    structlog.reset_defaults()


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_events_are_json_with_their_fields(file: Path) -> None:
    """Our events and those of libraries are one object a line, in a file of mode 0600 in a folder of mode 0700."""
    structlog.get_logger().info("lease.created", price_per_hour=410_000)
    logging.getLogger("some.library").warning("trouble %d", 7)

    ours, theirs = lines(file)
    assert (ours["event"], ours["price_per_hour"], ours["level"]) == ("lease.created", 410_000, "info")
    assert (theirs["event"], theirs["level"]) == ("trouble 7", "warning")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700  # it is the first that is made of the state


def test_a_line_that_cannot_be_written_prints_no_trace(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a hundred lines for each line that was lost: `status` and a message say that the disk is full."""
    handler = next(each for each in logging.getLogger().handlers if isinstance(each, RotatingFileHandler))
    monkeypatch.setattr(handler, "format", lambda record: 1 / 0)  # any error on the way to the disk

    structlog.get_logger().info("lease.created")

    assert capsys.readouterr().err == ""


def test_fields_named_like_secrets_are_hidden(file: Path) -> None:
    """A key that slips into a field never reaches the disk; a pinned host key may."""
    structlog.get_logger().info("market.asked", api_key="canary", HF_TOKEN="canary", host_key="ssh-ed25519 AAAA")

    (line,) = lines(file)
    assert "canary" not in json.dumps(line)
    assert line["host_key"] == "ssh-ed25519 AAAA"


def test_a_trace_shows_no_local_variable(file: Path) -> None:
    """Tracebacks name lines, not values: a secret in a local variable stays in memory."""
    api_key = "canary-in-a-local"
    try:
        raise RuntimeError("boom" if api_key else "")
    except RuntimeError:
        structlog.get_logger().exception("api.failed")

    (line,) = lines(file)
    assert "RuntimeError: boom" in str(line["exception"])
    assert "canary" not in json.dumps(line)
