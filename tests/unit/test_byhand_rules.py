"""Transfers by hand: where files go, and how each that ends early is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.control.byhand import KEPT, ByHand, Transfer, _ended, _floor, _folder
from daemon.errors import HomeportError, LinkLost, Refused


def test_a_folder_has_to_be_absolute() -> None:
    """The daemon's own folder is nobody's."""
    assert _folder("/tmp/x") == Path("/tmp/x")
    with pytest.raises(Refused, match="--to here: expected an absolute path"):
        _folder("here")


def test_the_floor_is_told_where_the_name_tells_the_quantisation() -> None:
    assert _floor("m-Q8_0.gguf", 9_000_000_000)["above_floor"] is True
    assert _floor("m-Q5_0.gguf", 9_000_000_000) == {}


FULL, DENIED = OSError(28, "No space left on device"), PermissionError(13, "Permission denied", "/mnt/x/a.bin")
ENDS: list[tuple[Exception, str, str]] = [
    (LinkLost("cut", hint="again"), "cut", "again"),
    (FULL, "/mnt/x: No space left on device", "make room, or give another --to"),
    (DENIED, "/mnt/x/a.bin: Permission denied", "make room, or give another --to"),
    (ValueError("a defect"), "internal error: ValueError('a defect')", "the trace is in the daemon's log"),
]


@pytest.mark.parametrize(("error", "problem", "hint"), ENDS, ids=[row[1] for row in ENDS])
async def test_what_ends_a_transfer_is_kept_for_whoever_asks(error: Exception, problem: str, hint: str) -> None:
    """With the folder that was asked for where the system names no file."""
    transfer = Transfer(Path("/mnt/x"))

    async def bring() -> None:
        raise error

    await _ended(transfer, bring)

    seen = transfer.view()
    assert (seen["state"], seen["problem"], seen["hint"]) == ("FAILED", problem, hint)
    assert isinstance(transfer.problem, HomeportError)


async def test_old_transfers_are_forgotten_and_running_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    none: Any = None
    hands = ByHand(none)
    running = Transfer(Path("/"))
    hands._transfers = {1: running} | {n: Transfer(Path("/"), ended=1.0) for n in range(2, KEPT + 4)}

    async def nothing() -> None:
        return None

    started = hands._start(Transfer(Path("/mnt")), nothing)

    assert started == {"transfer": KEPT + 4, "to": "/mnt"}
    assert sorted(hands._transfers) == [1, *range(4, KEPT + 5)]
