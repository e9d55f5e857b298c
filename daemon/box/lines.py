"""Text from the box, made safe to show and cut at whole lines. Pure."""

from __future__ import annotations

import re

# CSI, OSC (ended by BEL or ST), other string sequences, and the two-character escapes.
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean_line(text: str) -> str:
    """`text` without terminal escapes, control and direction-changing characters; tabs stay. Nor half characters,
    which no database takes.

    Of a progress bar that redraws itself with carriage returns, the last drawing is kept.
    """
    drawn = text.rstrip("\r\n").rsplit("\r", 1)[-1]
    return _CONTROL.sub("", _ESCAPE.sub("", drawn)).replace("\n", " ")


def whole_lines(block: bytes, limit: int) -> bytes:
    """The part of `block` up to its last line end: what follows may still be being written.

    A block of `limit` bytes without any line end is given as it is, else the reader would never get past it.
    """
    end = block.rfind(b"\n") + 1
    return block if not end and len(block) >= limit else block[:end]
