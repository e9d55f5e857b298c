"""Where a reading comes from: the daemon, or its database when the daemon is down, and then how old the figures are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

import click

from daemon import settings
from daemon.api.client import Client
from daemon.cli.exits import Exit
from daemon.cli.terminal import Look, cleaned, duration, seconds_since
from daemon.errors import DaemonUnreachable, HomeportError
from daemon.store import backups
from daemon.store.readonly import ReadModel
from daemon.store.shapes import JobPage, Jobs, Leases, Log, Metrics, MoneyStrip

_T = TypeVar("_T")


class Readings(Protocol):
    """What `Client` and `ReadModel` have in common."""

    def jobs(self) -> Jobs: ...
    def job(self, ref: str) -> JobPage: ...
    def metrics(self, ref: str, after: int) -> Metrics: ...
    def log(self, ref: str, offset: int) -> Log: ...
    def leases(self) -> Leases: ...


@dataclass(frozen=True)
class Reading(Generic[_T]):
    value: _T
    source: str  # DAEMON, DATABASE when it does not answer, MARKET when there is no readable database either
    demo: bool
    silent: DaemonUnreachable | None = None  # why the daemon did not answer

    @property
    def live(self) -> bool:
        return self.source == "DAEMON"

    @property
    def exit_code(self) -> Exit:
        return Exit.OK if self.live else Exit.NO_DAEMON

    def wire(self) -> dict[str, Any]:
        """For --json: the same object, and who gave it."""
        return {**cast(dict[str, Any], self.value), "source": self.source}


def client() -> Client:
    return Client(settings.load().paths)


def read(ask: Callable[[Readings], _T]) -> Reading[_T]:
    """`ask` the daemon, or the database when nobody answers.

    Raises DaemonUnreachable where there is neither, StoreError where the database was lost.
    """
    loaded = settings.load()
    where = loaded.paths
    try:
        return Reading(cleaned(ask(Client(where))), source="DAEMON", demo=loaded.demo)
    except DaemonUnreachable as silent:
        backups.refuse_lost(where.database, where.backups)
        if not where.database.exists():
            raise
        found = cleaned(ask(ReadModel(where.database, where.job_folders)))
        return Reading(found, source="DATABASE", demo=loaded.demo, silent=silent)


def read_leases() -> Reading[Leases]:
    """As `read`, and the market itself where there is no database or one that cannot be read."""
    try:
        return read(lambda source: source.leases())
    except HomeportError as error:  # the daemon too says so when it cannot read its database
        from daemon.cli import straight

        loaded = settings.load()
        click.echo(f"! {cleaned(error.message)}; straight from the market, by label:", err=True)
        return Reading(cleaned(straight.leases(loaded)), source="MARKET", demo=loaded.demo)


def banner(reading: Reading[Any], money: MoneyStrip, drawn: Look) -> list[str]:
    """What a screen says before anything else: that it is the demo's, that the daemon did not draw it."""
    lines = []
    if reading.demo:
        lines.append(drawn.paint("DEMO: market and machines are on this computer, and the money is not real.", "warn"))
    if reading.silent is not None:
        age = seconds_since(money["as_of"], time.time())
        old = f"figures are {duration(age)} old" if age is not None else "it never saw the market"
        count = money["machines"] + money["unsure"]
        bills = f" and {count} machine{'s' if count > 1 else ''} may be billing" if count else ""
        lines.append(drawn.paint(f"! {cleaned(reading.silent.message)}; {old}{bills}.", "warn"))
        lines.append(f"  Try: {reading.silent.hint}")
    return lines
