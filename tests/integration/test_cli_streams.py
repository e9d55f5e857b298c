"""Terminals that are not what one expects: closed streams, other encodings, a few columns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-c", "from daemon.cli import main; main()")
ROW = '{"text": "日本 and more words than a narrow line can hold"}\n'


def run(*words: str | bytes, home: Path, before: str = "", **env: str) -> subprocess.CompletedProcess[bytes]:
    command = ("sh", "-c", f'exec "$@" {before}', "sh", *COMMAND, *words)
    kept = os.environ | {"HOMEPORT_HOME": str(home)} | env
    return subprocess.run(command, env=kept, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "9"}], ids=str
)
def test_every_terminal_is_told_something(tmp_path: Path, env: dict[str, str]) -> None:
    """What it cannot show is a question mark, and no trace of Python."""
    file = tmp_path / "a.jsonl"
    file.write_text(ROW, encoding="utf-8")

    done = run("data-check", str(file), home=tmp_path / "home", **env)

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Sound" in done.stdout


@pytest.mark.parametrize(
    ("words", "before", "code"),
    [
        (("status",), ">&-", 4),
        (("write-off", "5"), "<&-", 2),
        (("show", b"\xff"), "", 4),
        (("show", "k7f"), "2>&-", 4),
    ],
    ids=["no output", "no input", "a byte that is no text", "no errors"],
)
def test_what_is_closed_or_no_text_makes_no_trace(
    tmp_path: Path, words: tuple[str | bytes, ...], before: str, code: int
) -> None:
    done = run(*words, home=tmp_path, before=before)

    assert done.returncode == code and b"Traceback" not in done.stderr
