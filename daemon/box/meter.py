"""Bytes counted block by block, told at a pace that a database can follow."""

from __future__ import annotations

import time
from collections.abc import Callable

CountBytes = Callable[[int, int], None]  # bytes up, bytes down

TELL_EVERY_S = 1.0


class Meter:
    """Adds up and tells `listener` at most every TELL_EVERY_S; `flush` tells the rest."""

    def __init__(self, listener: CountBytes) -> None:
        self._listener = listener
        self._up = 0
        self._down = 0
        self._told_at = time.monotonic()

    def count(self, up: int, down: int) -> None:
        self._up += up
        self._down += down
        if time.monotonic() - self._told_at >= TELL_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._told_at = time.monotonic()
        up, down, self._up, self._down = self._up, self._down, 0, 0
        if up or down:
            self._listener(up, down)
