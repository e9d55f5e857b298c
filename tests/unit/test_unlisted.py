"""A machine that no listing shows bills all the same: what else the market says of its price is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import store

from daemon.clock import ManualClock
from daemon.control.operate import Operator
from daemon.control.reconcile import Reconciler
from daemon.domain.market import Charge, Instance, Listing
from daemon.domain.records import Kind, Lease, OpState
from daemon.errors import MarketUnreachable
from daemon.settings import Paths, Settings
from daemon.store import leases, operations

DEAR = 9_000_000  # micro-dollars an hour
LABEL = "hp-a-b-c"


class Unlisted:
    """Its listings are trusted and empty."""

    charged = 0

    async def listing(self) -> Listing:
        return Listing(True)

    async def show(self, instance: int) -> Instance:
        return Instance(
            id=instance, label=None, actual_status="running", intended_status="running", cur_state="running",
            status_msg="", machine_id=5, host_id=6, gpu_name="H100", num_gpus=1, price_per_hour=DEAR,
            storage_per_hour=0, start_ms=None, end_ms=None, direct=None, proxy=None, gpu_util=None,
        )  # fmt: skip

    async def charges(self, since_ms: int) -> list[Charge]:
        return [Charge(store.INSTANCE, LABEL, self.charged, None, None)]

    async def stop(self, instance: int) -> Any:
        raise MarketUnreachable("no answer")

    async def destroy(self, permit: Any) -> Any:
        raise MarketUnreachable("no answer")


async def passes(folder: Path, market: Unlisted, *, create: bool) -> Lease:
    """The lease after a quarter of an hour of passes."""
    database, clock = store.opened(folder), ManualClock()
    settings = Settings(Paths(folder, folder, folder))
    reconciler = Reconciler(database, Operator(database, market, clock, settings), clock, settings.timing)  # type: ignore[arg-type]
    with database.write() as c:
        store.add_job(c)
        if create:
            terms = '{"challenge": "x", "terms": {"price_per_hour": 1000000}}'
            op = operations.intend(c, Kind.CREATE, clock.wall_ms(), 1, {}, job_id=store.JOB, label=LABEL)
            operations.set_state(c, op, OpState.SENT, clock.wall_ms(), request=terms)
            operations.set_state(c, op, OpState.UNKNOWN, clock.wall_ms())
        else:
            store.add_lease(c)
    try:
        for _ in range(30):
            await reconciler.run_once()
            with database.read() as c:
                found = leases.by_instance(c, store.INSTANCE)
            if create and found is not None:
                return found
            clock.advance(30.0)
        assert found is not None
        return found
    finally:
        database.close()


async def test_the_price_that_is_shown_to_who_asks_counts(tmp_path: Path) -> None:
    assert (await passes(tmp_path, Unlisted(), create=False)).price_per_hour == DEAR


@pytest.mark.parametrize(("charged", "least"), [(5_000_000, 5_000_000), (0, 160_000)], ids=["dearer", "late"])
async def test_what_was_charged_counts_if_it_is_more(tmp_path: Path, charged: int, least: int) -> None:
    """The offer's price from the create on, or the charge: the charge may lag, and the price may be another."""
    market = Unlisted()
    market.charged = charged
    lease = await passes(tmp_path, market, create=True)
    assert lease.cost >= least
