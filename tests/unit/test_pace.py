"""A limit on bytes a second."""

from __future__ import annotations

import asyncio

import pytest

from daemon.box import pace
from daemon.box.pace import Pace


async def test_bytes_pass_no_faster_than_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three takes of half a second's bytes each wait 0, 0.5 and 1 s, whoever asks for them."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(round(seconds, 2))

    monkeypatch.setattr(pace.asyncio, "sleep", sleep)
    shared = Pace(1000.0)

    await asyncio.gather(*(shared.take(500) for _ in range(3)))

    assert sorted(waits) == [0.0, 0.5, 1.0]


def test_a_line_without_limit_has_no_pace() -> None:
    """limits.line unset: nothing is held back."""
    assert Pace.on_line(None) is None
    assert Pace.on_line(8.0, 0.5) is not None
