"""One direction of one connection: bytes pass at once, or later and in order while the line is slow or dead."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable

LOOK_S = 0.05  # how often a dead line is looked at again


class Flow:
    """`deliver` takes the bytes on; `delay_s` tells how long so many of them take now."""

    def __init__(self, deliver: Callable[[bytes], None], delay_s: Callable[[int], float]) -> None:
        self._deliver = deliver
        self._delay_s = delay_s
        self._waiting: deque[bytes] = deque()
        self._draining: asyncio.Task[None] | None = None

    def pass_on(self, chunk: bytes) -> None:
        if not self._waiting and self._delay_s(len(chunk)) == 0:
            self._deliver(chunk)
            return
        self._waiting.append(bytes(chunk))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while self._waiting:
            delay_s = self._delay_s(len(self._waiting[0]))
            await asyncio.sleep(LOOK_S if math.isinf(delay_s) else delay_s)
            if not math.isinf(delay_s):
                self._deliver(self._waiting.popleft())
