"""One thread and simulated time: an event loop that never waits, and the three clocks that move with it.

When nothing is ready the loop jumps to its next timer. `run_in_executor` runs its function inline, so a thread of the
daemon is one more step of the same thread. A daemon that was killed keeps its tasks, but none of them ever runs again.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import base_events, events
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

HOUR_S = 3600.0
START_MS = 1_790_000_000_000


class Crash(BaseException):
    """The daemon's process ends here. Nothing in production catches it: it is no Exception."""


@dataclass(eq=False)
class Life:
    """One process of the daemon, from its start to its end. Whatever runs in its context acts as that process."""

    number: int
    account: int  # whose key was in its place at the start
    dead: bool = False
    epoch: int | None = None
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)  # every one: a dead process runs no `finally`

    def __str__(self) -> str:
        return f"jobd-{self.number}"


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
AT: ContextVar[str] = ContextVar("at", default="")  # the boundary that this task met last


class SimulatedClock:
    """The daemon's three clocks. `boot` is the world's own time; the market and the boxes live by it."""

    def __init__(self) -> None:
        self._mono = 1_000.0
        self._slept = 0.0
        self._stepped_ms = 0
        self.set_backs = self.set_aheads = 0

    def mono(self) -> float:
        return self._mono

    def boot(self) -> float:
        return self._mono + self._slept

    def wall_ms(self) -> int:
        return START_MS + round(self.boot() * 1000) + self._stepped_ms

    def true_ms(self) -> int:
        """UTC as the market knows it, whatever the workstation's clock says."""
        return self.true_ms_at(self.boot())

    def true_ms_at(self, boot: float) -> int:
        return START_MS + round(boot * 1000)

    def run_until(self, mono: float) -> None:
        self._mono = max(self._mono, mono)

    def suspend(self, seconds: float) -> None:
        self._slept += seconds

    def step_wall(self, seconds: float) -> None:
        """Somebody, or NTP, sets the clock."""
        self._stepped_ms += round(seconds * 1000)
        self.set_backs += seconds < 0
        self.set_aheads += seconds > 0


class VirtualLoop(base_events.BaseEventLoop):
    """`time()` is the simulation's monotonic clock. `limit` steps end a simulation that makes no progress."""

    def __init__(self, clock: SimulatedClock, limit: int) -> None:
        super().__init__()
        self.clock = clock
        self.steps = 0
        self.limit = limit
        self.complaints: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self._complain(context))
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self.clock.mono()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Inline; the caller goes on one step later, as it would after a thread."""
        future = self.create_future()
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - the caller's, as from a thread
            self.call_soon(_settle, future, None, error)
        else:
            self.call_soon(_settle, future, result, None)
        return future

    def _complain(self, context: dict[str, Any]) -> None:
        """What asyncio would have logged, for the invariants to look at; dead processes complain of nothing."""
        task = context.get("task") or context.get("future")
        if not getattr(task, "posthumous", False):
            self.complaints.append(context)

    def _run_once(self) -> None:
        """The one step of BaseEventLoop that waits; this one jumps."""
        if not self._ready:
            while self._scheduled and self._scheduled[0]._cancelled:
                self._timer_cancelled_count -= 1
                heapq.heappop(self._scheduled)._scheduled = False
            if not self._scheduled:
                raise RuntimeError("the simulation has nothing left to do, and was not told to end")
            self.clock.run_until(self._scheduled[0]._when)
            while self._scheduled and self._scheduled[0]._when <= self.time():
                handle = heapq.heappop(self._scheduled)
                handle._scheduled = False
                self._ready.append(handle)
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            life = handle._context.get(LIFE)
            if not handle._cancelled and not (life is not None and life.dead):
                self.steps += 1
                handle._run()
        if self.steps > self.limit:
            raise RuntimeError(f"the simulation made {self.limit} steps and came to no end")

    def _process_events(self, event_list: list[Any]) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """There is no other thread that would have to be heard."""


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context = options.get("context")
    life = context.get(LIFE) if context is not None else LIFE.get()
    if life is not None:
        life.tasks.append(task)
    return task


def run(loop: VirtualLoop, main: Callable[[], Any]) -> Any:
    """Run `main()` to its end on `loop`, whatever loop the caller had."""
    before = events._get_running_loop()
    events._set_running_loop(None)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main())
    finally:
        asyncio.set_event_loop(None)
        events._set_running_loop(before)


def bury(life: Life) -> None:
    """Let the coroutines of a dead process go, without a word: their `finally` blocks meet a world that is closed."""
    for task in life.tasks:
        if task.done():
            continue
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coro = task.get_coro()
        for _ in range(20):  # a `finally` that awaits has to be closed once more
            try:
                coro.close()
                break
            except BaseException:  # noqa: BLE001 - whatever it says, its process is gone
                continue
    life.tasks.clear()
