"""A limit on bytes a second, for transfers that leave the rest of the line to others."""

from __future__ import annotations

import asyncio

MEGABIT = 1e6 / 8  # bytes


class Pace:
    """Lets `rate` bytes a second pass, in the order of asking. Shared by everything that shares the limit."""

    @classmethod
    def on_line(cls, megabits: float | None, share: float = 1.0) -> Pace | None:
        """`share` of a line of so many Mb/s; None when nobody set a limit."""
        return None if megabits is None else cls(share * megabits * MEGABIT)

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        """Return when `size` bytes may be asked for."""
        now = asyncio.get_running_loop().time()
        begin = max(self._free_at, now)
        self._free_at = begin + size / self._rate
        await asyncio.sleep(begin - now)
