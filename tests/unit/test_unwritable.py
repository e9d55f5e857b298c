"""That nothing can be written is told, and not every few seconds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from daemon.clock import ManualClock
from daemon.control.unwritable import Unwritable
from daemon.errors import StoreError


@pytest.mark.parametrize("arrives", [True, False], ids=["a disk at its brim", "an address that answers too late"])
async def test_an_hour_of_it_is_a_handful_of_messages(arrives: bool) -> None:
    """The fault comes and goes with every pass, or the message seems not to arrive."""
    clock, told = ManualClock(), []

    async def notify(title: str, text: str, again: bool) -> bool:
        told.append(title)
        return arrives

    one = Unwritable(cast(Any, SimpleNamespace(clock=clock, notify=notify)))
    for _ in range(3600 // 10):
        await one.tell(StoreError("disk is full"))
        clock.advance(5.0)
        if arrives:
            one.over()
        clock.advance(5.0)

    assert 1 <= len(told) <= 8
    clock.advance(3600.0)
    one.over()
    before = len(told)
    await one.tell(StoreError("disk is full"))
    assert len(told) == before + 1
