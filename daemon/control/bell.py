"""How an actor waits: until a time is over, somebody rings, or a person's command cuts in."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

PAUSE_S = 5.0  # how long a decision stands while nothing rings, and after a market that did not answer


@dataclass
class Bell:
    """`interrupted` stays set until the actor has looked."""

    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    _rung: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        self._rung.set()

    def interrupt(self) -> None:
        self.interrupted.set()
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        self._rung.clear()
        with contextlib.suppress(TimeoutError):  # the pause is over, as the caller wanted
            async with asyncio.timeout(seconds):
                await self._rung.wait()
