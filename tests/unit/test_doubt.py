"""Reconcile with a market that will not say: what cannot be confirmed stays as it is, and is asked again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import store
from scripted_market import ScriptedMarket, instance
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from daemon.clock import ManualClock
from daemon.control.operate import Operator
from daemon.control.reconcile import Reconciler
from daemon.domain.records import Kind, LeaseState, OpState
from daemon.errors import CredentialsRefused, HomeportError, MarketRefused, MarketUnreachable, StoreError
from daemon.settings import Paths, Settings
from daemon.store import leases, operations
from daemon.store.database import Database

DOUBT = [MarketUnreachable("no answer"), CredentialsRefused("bad key")]


class Market(ScriptedMarket):
    """`doubt` is raised instead of every answer to a question about one thing."""

    doubt: HomeportError | None = None

    async def show(self, instance_id: int) -> Any:
        if self.doubt:
            raise self.doubt
        return await super().show(instance_id)

    async def charges(self, since_ms: int) -> Any:
        if self.doubt:
            raise self.doubt
        return await super().charges(since_ms)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.database, self.clock, self.market = store.opened(folder), ManualClock(), Market()
        settings = Settings(Paths(folder, folder, folder))
        operator = Operator(self.database, self.market, self.clock, settings)
        self.reconciler = Reconciler(self.database, operator, self.clock, settings.timing)
        with self.database.write() as c:
            store.add_job(c)

    async def passes(self, count: int, seconds: float = 31.0) -> None:
        for _ in range(count):
            await self.reconciler.run_once()
            self.clock.advance(seconds)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path)
    yield one
    one.database.close()


@pytest.mark.parametrize("doubt", DOUBT, ids=lambda error: type(error).__name__)
async def test_absent_from_listings_is_not_gone(bench: Bench, doubt: HomeportError) -> None:
    """Listings without it count for nothing until the market says of this very instance that there is none."""
    with bench.database.write() as c:
        lease = store.add_lease(c)

    def state() -> LeaseState:
        with bench.database.read() as c:
            return leases.get(c, lease).state

    bench.market.doubt = doubt
    await bench.passes(5)
    doubted = state()
    bench.market.doubt = None
    await bench.passes(1)

    assert (doubted, state()) == (LeaseState.LIVE, LeaseState.GONE)


@pytest.mark.parametrize("doubt", DOUBT, ids=lambda error: type(error).__name__)
async def test_a_create_without_its_charges_read_is_not_absent(bench: Bench, doubt: HomeportError) -> None:
    """Absent from listings long enough, but the charges cannot be read: still UNKNOWN, so nothing else is rented."""
    with bench.database.write() as c:
        create = operations.intend(c, Kind.CREATE, store.NOW, 1, {}, job_id=store.JOB, label="hp-a-b-c")
        operations.set_state(c, create, OpState.SENT, store.NOW)
        operations.set_state(c, create, OpState.UNKNOWN, store.NOW)

    def state() -> OpState:
        with bench.database.read() as c:
            return operations.get(c, create).state

    bench.market.doubt = doubt
    await bench.passes(30)
    doubted = state()
    bench.market.doubt = None
    await bench.passes(1)

    assert (doubted, state()) == (OpState.UNKNOWN, OpState.ABSENT)


async def test_a_late_arrival_that_cannot_be_ended_is_tried_again(bench: Bench) -> None:
    """Refused both ways, pass after pass, and the pass itself goes on."""
    with bench.database.write() as c:
        store.add_lease(c, state=LeaseState.LOST)
    bench.market.instances = [instance(store.INSTANCE)]
    bench.market.answers = dict.fromkeys(("stop", "destroy"), MarketRefused("not now"))

    await bench.passes(4, seconds=61.0)

    asked = [call for call, _ in bench.market.asked]
    assert asked.count("stop") >= 2 and asked.count("destroy") >= 2
    with bench.database.read() as c:
        assert [lease.state for lease in leases.held(c)] == [LeaseState.LOST]


def unsure(database: Database, commits: int) -> None:
    """The last of the next `commits` is stored, and reported as an error."""
    left = iter(range(commits - 1, -1, -1))

    def commit(connection: Any) -> None:
        if next(left, None) == 0:
            connection.connection.dbapi_connection.commit()
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    event.listen(database.engine, "commit", commit)


async def test_gone_is_counted_from_no_pass_before_one_that_failed(bench: Bench) -> None:
    """It was missed, seen again and missed again while the store failed: the first miss is no evidence any more."""
    with bench.database.write() as c:
        lease = store.add_lease(c)
    await bench.passes(1, seconds=10.0)
    for instances in ([instance(store.INSTANCE)], []):
        bench.market.instances = instances
        unsure(bench.database, 2)  # of a pass: that it leads, and what the listing says
        with pytest.raises(StoreError):
            await bench.passes(1)
        bench.clock.advance(12.0)

    await bench.passes(1)

    with bench.database.read() as c:
        found = leases.get(c, lease)
    assert (found.absent_count, found.state) == (2, LeaseState.LIVE)


async def test_time_before_a_pass_that_failed_counts_once(bench: Bench) -> None:
    """A create is waited for so long that the market must have listed it: no minute of that may count twice."""
    with bench.database.write() as c:
        create = operations.intend(c, Kind.CREATE, store.NOW, 1, {}, job_id=store.JOB, label="hp-a-b-c")
        operations.set_state(c, create, OpState.SENT, bench.clock.wall_ms())
        operations.set_state(c, create, OpState.UNKNOWN, bench.clock.wall_ms())
    await bench.passes(1, seconds=300.0)
    unsure(bench.database, 2)
    with pytest.raises(StoreError):
        await bench.passes(1)
    bench.clock.advance(10.0)

    await bench.passes(1)

    with bench.database.read() as c:
        assert operations.get(c, create).absent_awake_s <= 310.0
