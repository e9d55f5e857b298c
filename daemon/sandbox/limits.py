"""The market's rate limits: a minimum interval in seconds per endpoint and key, divided by the time scale."""

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
SEARCH = re.compile(r"/api/v0/(bundles|search/asks)")
SEARCHES, SEARCH_WINDOW_S = 10, 60.0


class Limiter:
    """Remembers when each key last called each endpoint. A refused call does not count against the next one."""

    def __init__(self, time_scale: float) -> None:
        self._time_scale = time_scale
        self._last: dict[tuple[str, int], float] = {}
        self._searches: deque[float] = deque()

    def refusal(self, key: str, method: str, path: str) -> str | None:
        """The text of a 429 for this call, or None when it may pass."""
        now = time.monotonic()
        bare = path.rstrip("/")
        if SEARCH.fullmatch(bare):
            return self._search_refusal(now)
        for row, (verb, pattern, interval) in enumerate(INTERVALS):
            if verb == method and pattern.fullmatch(bare):
                if now - self._last.get((key, row), float("-inf")) < interval / self._time_scale:
                    return f"API requests too frequent: endpoint threshold={interval}"
                self._last[key, row] = now
                return None
        return None

    def _search_refusal(self, now: float) -> str | None:
        while self._searches and now - self._searches[0] >= SEARCH_WINDOW_S / self._time_scale:
            self._searches.popleft()
        if len(self._searches) >= SEARCHES:
            return "API requests too frequent"
        self._searches.append(now)
        return None
