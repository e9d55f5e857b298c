"""Text of the box made safe, cut at lines, and told from noise."""

from __future__ import annotations

import subprocess

import pytest

from daemon.box.command import SHELL, framed, unframed
from daemon.box.lines import clean_line, whole_lines


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("loss 1.28\n", "loss 1.28"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;your title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\after", "after"),
        ("\x1b]52;c;ZXZpbA==", ""),
        ("10%\r50%\r100%\r\n", "100%"),
        ("a\x00b\x08c\x9bd\u202ee", "abcde"),
        ("tab\tstays, so does ü", "tab\tstays, so does ü"),
        ("\x1b", ""),
    ],
)
def test_nothing_that_moves_a_terminal_survives(raw: str, clean: str) -> None:
    """Escapes, control and direction-changing characters are gone, the words stay."""
    assert clean_line(raw) == clean


@pytest.mark.parametrize(
    ("block", "limit", "lines"),
    [
        (b"one\ntwo\nthr", 100, b"one\ntwo\n"),
        (b"one\n", 100, b"one\n"),
        (b"still being written", 100, b""),
        (b"", 100, b""),
        (b"longer than the limit", 21, b"longer than the limit"),
    ],
)
def test_only_whole_lines_are_given(block: bytes, limit: int, lines: bytes) -> None:
    """A line that is still being written waits; one that can never fit is passed on."""
    assert whole_lines(block, limit) == lines


def test_a_script_cut_short_runs_nothing() -> None:
    """However much of a script arrives, bash runs all of it or none."""
    script = framed("echo ran", "mark", folder=None, env={})

    for end in range(len(script.rstrip())):
        ended = subprocess.run([*SHELL.split()], input=script[:end].encode(), capture_output=True, check=False)
        assert b"ran" not in ended.stdout


def test_a_reply_without_its_end_is_no_reply() -> None:
    """Output that was cut off, or that only looks framed, is not parsed."""
    assert unframed(b"noise\nm begin\nhalf", b"", "m") is None
    assert unframed(b"other begin\nx\nother end 0\n", b"", "m") is None


def test_output_and_code_come_out_of_the_frame_unchanged() -> None:
    """Trailing newlines, or their absence, and the exit code are the command's own."""
    script = framed("printf 'a\\n\\n'; exit 7", "m", folder="/", env={"A": "it's"})
    ended = subprocess.run([*SHELL.split()], input=script.encode(), capture_output=True, check=True)

    reply = unframed(b"noise" + ended.stdout, b"", "m")

    assert reply is not None
    assert (reply.code, reply.output) == (7, "a\n\n")


def test_half_a_character_is_left_out() -> None:
    """JSON may name one, as in a preflight's detail; a hold with it could not be stored."""
    assert clean_line("disk: \ud800full") == "disk: full"
