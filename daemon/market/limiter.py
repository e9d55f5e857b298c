"""How often the market may be asked: one limiter for everything that is sent under one key.

Vast.ai enforces a minimum interval per endpoint and key, and a key that keeps asking after refusals is shut out of
everything. So a 429 quiets the whole key for a while. A destroy ends billing: it waits only for its own interval, and
while one waits nothing else is sent.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import StrEnum

from daemon.clock import Clock
from daemon.errors import RateLimited


class Call(StrEnum):
    """A class of requests that share one limit."""

    ACCOUNT = "account"
    SEARCH = "search"
    CREATE = "create"
    SHOW = "show"
    LIST = "list"
    CHANGE = "change"  # start, stop, label
    ATTACH = "attach"
    LOGS = "logs"
    CHARGES = "charges"
    DESTROY = "destroy"


# Seconds between two requests, as the market's documentation states them; where it states none, a close relative's.
INTERVAL_S = {
    Call.ACCOUNT: 1.0,
    Call.SEARCH: 6.0,  # stated as 10 a minute
    Call.CREATE: 4.5,
    Call.SHOW: 2.0,
    Call.LIST: 1.0,
    Call.CHANGE: 1.0,
    Call.ATTACH: 2.0,
    Call.LOGS: 1.5,
    Call.CHARGES: 1.0,
    Call.DESTROY: 3.0,
}
SLOW_REPLY_S = 1.0  # so long the next request of a kind waits for the reply to the one before
LONGEST_QUIET_S = 60.0  # a longer wait is the quota of one endpoint, leaves the others alone, and is not waited for
AFTER_DESTROY_S = 0.05  # so that of two who wake together the destroy is first


class Limiter:
    """Hands out turns. `time_scale` shortens every interval on a sandbox market."""

    def __init__(self, clock: Clock, time_scale: float = 1.0) -> None:
        self._clock = clock
        self._scale = time_scale
        self._free_at: dict[Call, float] = {}
        self._quiet_until = float("-inf")
        self._refusals: defaultdict[Call, int] = defaultdict(int)
        self._destroys_waiting = 0
        self._replied = asyncio.Event()  # replaced by a new one with every reply

    @asynccontextmanager
    async def turn(self, call: Call) -> AsyncIterator[None]:
        """Wait until a request of this kind may be sent; send it and read its reply inside.

        Raises RateLimited, with nothing sent, where the market asked to wait for longer than a caller can: a listing
        that waited for hours would leave us blind, and a destroy that did would hold up everything else.

        The next interval begins with the reply: the market measures arrivals, and that is the first moment at which the
        request has surely arrived.
        """
        await self._wait(call)
        try:
            yield
        finally:
            self._free_at[call] = self._clock.mono() + INTERVAL_S[call] / self._scale
            self._replied.set()
            self._replied = asyncio.Event()

    async def _wait(self, call: Call) -> None:
        urgent = call is Call.DESTROY
        self._destroys_waiting += urgent
        try:
            while (wait_s := self.wait_s(call)) > 0:
                if wait_s > LONGEST_QUIET_S:
                    raise RateLimited(f"{call}: the market asked to wait, {wait_s:.0f} s more", retry_after_s=wait_s)
                with suppress(TimeoutError):  # or a reply comes, which may free the turn sooner than was known
                    async with asyncio.timeout(wait_s):
                        await self._replied.wait()
            self._free_at[call] = self._clock.mono() + INTERVAL_S[call] / self._scale + SLOW_REPLY_S
        finally:
            self._destroys_waiting -= urgent

    def wait_s(self, call: Call) -> float:
        """Seconds until a request of this kind may be sent, as far as is known now; zero or less: at once."""
        free_at = self._free_at.get(call, self._clock.mono())
        if call is not Call.DESTROY:
            free_at = max(free_at, self._quiet_until)
            if self._destroys_waiting:
                free_at = max(free_at, self._free_at[Call.DESTROY] + AFTER_DESTROY_S / self._scale)
        return free_at - self._clock.mono()

    def refused(self, call: Call, stated_s: float | None) -> float:
        """The market answered 429, perhaps stating a wait. Returns how many seconds it asks for; 0 states none."""
        self._refusals[call] += 1
        doubled = min(INTERVAL_S[call] * 2 ** self._refusals[call], LONGEST_QUIET_S)
        wait_s = stated_s or doubled / self._scale
        until = self._clock.mono() + wait_s
        self._free_at[call] = max(until, self._free_at.get(call, until))  # the interval is kept all the same
        if wait_s <= LONGEST_QUIET_S:
            self._quiet_until = max(self._quiet_until, until)
        return wait_s

    def accepted(self, call: Call) -> None:
        """The market answered something else: the next refusal starts from the shortest wait again."""
        self._refusals[call] = 0
