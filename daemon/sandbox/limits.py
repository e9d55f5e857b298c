"""The market's rate limits: a minimum interval in seconds per endpoint and key, divided by the time scale.

Who creates too early has to wait for longer than who did not: the market's documentation calls that a penalty.
"""

from __future__ import annotations

import re
import time
from collections import deque

# method, path, minimum interval in seconds; the first row that matches counts.
INTERVALS: list[tuple[str, re.Pattern[str], float]] = [
    (method, re.compile(path), interval)
    for method, path, interval in (
        ("PUT", r"/api/v0/asks/\d+", 4.5),
        ("DELETE", r"/api/v0/instances/\d+", 3.0),
        ("GET", r"/api/v0/instances/\d+", 2.0),
        ("GET", r"/api/v1/instances", 1.0),
        ("PUT", r"/api/v0/instances/\d+", 1.0),
        ("PUT", r"/api/v0/instances", 1.0),
        ("DELETE", r"/api/v0/instances", 3.0),
        ("PUT", r"/api/v0/instances/(reboot|recycle)/\d+", 1.0),
        ("PUT", r"/api/v0/instances/bid_price/\d+", 5.5),
        ("DELETE", r"/api/v0/instances/\d+/ssh/\d+", 2.0),
        ("POST", r"/api/v0/ssh", 1.0),
        ("PUT", r"/api/v0/instances/command/\d+", 1.5),
        ("GET", r"/api/v0/charges", 1.0),
        ("GET", r"/api/v1/invoices", 3.0),
    )
]
CREATE, CREATE_PENALTY_S = 0, 12.0  # the row of the create
SEARCH = re.compile(r"/api/v0/(bundles|search/asks)")
SEARCHES, SEARCH_WINDOW_S = 10, 60.0


class Limiter:
    """Remembers from when each key may call each endpoint again. But for a create, a refused call costs nothing."""

    def __init__(self, time_scale: float) -> None:
        self._time_scale = time_scale
        self._free_at: dict[tuple[str, int], float] = {}
        self._searches: deque[float] = deque()

    def refusal(self, key: str, method: str, path: str) -> str | None:
        """The text of a 429 for this call, or None when it may pass."""
        now = time.monotonic()
        bare = path.rstrip("/")
        if SEARCH.fullmatch(bare):
            return self._search_refusal(now)
        for row, (verb, pattern, interval) in enumerate(INTERVALS):
            if verb == method and pattern.fullmatch(bare):
                if now < self._free_at.get((key, row), now):
                    if row == CREATE:
                        self._free_at[key, row] = now + CREATE_PENALTY_S / self._time_scale
                    return f"API requests too frequent: endpoint threshold={interval}"
                self._free_at[key, row] = now + interval / self._time_scale
                return None
        return None

    def _search_refusal(self, now: float) -> str | None:
        while self._searches and now - self._searches[0] >= SEARCH_WINDOW_S / self._time_scale:
            self._searches.popleft()
        if len(self._searches) >= SEARCHES:
            return "API requests too frequent"
        self._searches.append(now)
        return None
