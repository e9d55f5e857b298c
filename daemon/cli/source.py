"""Where a reading comes from: the daemon, or its database when the daemon is down, and then how old the figures are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from daemon import settings
from daemon.api.client import Client
from daemon.cli.exits import Exit
from daemon.cli.terminal import cleaned, duration, seconds_since
from daemon.errors import DaemonUnreachable
from daemon.store.readonly import ReadModel
from daemon.store.shapes import Events, JobPage, Jobs, Leases, Log, Metrics, MoneyStrip

_T = TypeVar("_T")


class Readings(Protocol):
    """What `Client` and `ReadModel` have in common."""

    def jobs(self) -> Jobs: ...
    def job(self, ref: str) -> JobPage: ...
    def events(self, ref: str, after: int) -> Events: ...
    def metrics(self, ref: str, after: int) -> Metrics: ...
    def log(self, ref: str, offset: int) -> Log: ...
    def leases(self) -> Leases: ...


@dataclass(frozen=True)
class Reading(Generic[_T]):
    value: _T
    live: bool  # the daemon answered; else the database did

    @property
    def exit_code(self) -> Exit:
        return Exit.OK if self.live else Exit.NO_DAEMON

    def wire(self) -> dict[str, Any]:
        """For --json: the same object, and who gave it."""
        return {**cast(dict[str, Any], self.value), "source": "DAEMON" if self.live else "DATABASE"}


def client() -> Client:
    return Client(settings.load().paths)


def read(ask: Callable[[Readings], _T]) -> Reading[_T]:
    """`ask` the daemon, or the database when nobody answers. Raises DaemonUnreachable where there is neither."""
    where = settings.load().paths
    try:
        return Reading(cleaned(ask(Client(where))), live=True)
    except DaemonUnreachable:
        if not where.database.exists():
            raise
        return Reading(cleaned(ask(ReadModel(where.database, where.job_logs))), live=False)


def warning(money: MoneyStrip) -> str:
    """The first line of a screen that the daemon did not draw."""
    age = seconds_since(money["as_of"], time.time())
    old = f"figures are {duration(age)} old" if age is not None else "nothing was ever rented"
    count = money["machines"]
    bills = f" and {count} machine{'s' if count > 1 else ''} may be billing" if count else ""
    return f"! the daemon is not running; {old}{bills}.   Try: jobctl serve"
