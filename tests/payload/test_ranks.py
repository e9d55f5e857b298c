"""The processes of one step end together, and their exit codes become the one that names the cause."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from remote_payload import ranks
from remote_payload.contract import Exit
from remote_payload.ranks import Rank, Ranks, verdict

PATIENCE_S = 60.0


def outcome(script: str, size: int, folder: Path) -> int:
    """The verdict on `size` shells that run `script`, each knowing its RANK."""
    with open(folder / "log", "ab") as log:
        running = Ranks.start(["sh", "-c", script], size, dict(os.environ), log, [])
    deadline = time.monotonic() + PATIENCE_S
    while (code := running.wait(0.05)) is None:
        assert time.monotonic() < deadline, "the ranks did not end"
    return code


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], Exit.OK),
        ([Exit.INTERNAL, -9], -9),
        ([-6, Exit.OUT_OF_MEMORY], Exit.OUT_OF_MEMORY),
        ([Exit.DIVERGED, Exit.INTERNAL], Exit.DIVERGED),
        ([Exit.INTERNAL, 1], 1),
        ([Exit.STOPPED, Exit.STOPPED], Exit.STOPPED),
        ([0, Exit.INTERNAL], Exit.INTERNAL),
        ([Exit.RANK_LOST, -9], -9),
        ([Exit.RANK_LOST, Exit.INTERNAL, -6], Exit.INTERNAL),
        ([Exit.RANK_LOST], Exit.RANK_LOST),
    ],
)
def test_verdict_names_the_cause(codes: list[int], expected: int) -> None:
    """The rank that met the trouble decides, not those that lost their partner by it."""
    assert verdict(codes) == expected


def test_a_lost_rank_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one rank is killed those that wait for it are ended, and the step was killed."""
    monkeypatch.setattr(ranks, "GRACE_S", 0.1)

    assert outcome("[ $RANK = 1 ] && kill -9 $$; exec sleep 600", 3, tmp_path) == -9


def test_a_rank_that_cannot_end_does_not_keep_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank has written everything when it ends; another that hangs after it changes nothing."""
    monkeypatch.setattr(ranks, "GRACE_S", 0.1)

    assert outcome("[ $RANK = 0 ] && exit 0; exec sleep 600", 2, tmp_path) == Exit.OK


def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    """The ranks of one step have numbers from 0, one size, and one port to meet at."""
    told = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR:$MASTER_PORT"'

    assert outcome(told, 2, tmp_path) == Exit.OK

    lines = [line.split() for line in sorted((tmp_path / "log").read_text().splitlines())]
    assert [line[:3] for line in lines] == [["0", "0", "2"], ["1", "1", "2"]]
    assert lines[0][3] == lines[1][3]


def test_one_process_has_no_ranks(tmp_path: Path) -> None:
    """A single process is started as it always was, without a launcher's variables."""
    assert outcome('test -z "$LOCAL_RANK"', 1, tmp_path) == Exit.OK
    assert Rank.own({}) == Rank(0, 1)
    assert Rank.own({"LOCAL_RANK": "3", "WORLD_SIZE": "8"}) == Rank(3, 8)
