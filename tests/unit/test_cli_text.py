"""How the command line writes figures and tables, whatever the screen."""

from __future__ import annotations

import pytest

from daemon.cli.terminal import Column, Look, dollars, duration, size, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m00s"), (246, "4m06s"), (9060, "2h31m"), (273_600, "3d4h"), (-5, "0s")],
)
def test_durations(seconds: float, text: str) -> None:
    """Two units at most."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"), [("0.00", "$0.00"), ("0.0012", "$0.0012"), ("1.064999", "$1.06"), ("12.3", "$12.30")]
)
def test_dollars(amount: str, text: str) -> None:
    """Cents, and fractions of a cent only below one."""
    assert dollars(amount) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (6_200_000_000, "6.2 GB"), (5_000_000_000_000, "5000.0 GB")])
def test_sizes(count: int, text: str) -> None:
    """Decimal units, as disks and markets count."""
    assert size(count) == text


def test_a_table_clips_what_may_be_clipped() -> None:
    """A cell that is too long ends in an ellipsis, and the others stay whole."""
    lines = table([Column("ID", ["k7f3qd"]), Column("NAME", ["a-rather-long-name"], least=8)], Look(width=16))

    assert lines == ["ID      NAME", "k7f3qd  a-rathe…"]


def test_a_cell_is_one_line() -> None:
    """What a machine says must not look like a line of ours."""
    lines = table([Column("SAYS", ["boom\nNothing is being rented. $0.00/h."]), Column("N", ["1"])], Look(width=60))

    assert lines == ["SAYS                                    N", "boom Nothing is being rented. $0.00/h.  1"]
