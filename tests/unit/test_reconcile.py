"""What one look at the market's list makes of machines that nobody here expected, and of requests without an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from desk import Desk
from scripted_market import instance
from store import INSTANCE, JOB, add_job, add_lease, start_stage

from daemon.clock import SteadyClock
from daemon.control.reconcile import DAY_MS, Reconciler
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.market import Listing
from daemon.domain.records import Kind, Lease, LeaseState, Operation, OpState, Wish
from daemon.errors import CredentialsRefused, MarketUnreachable
from daemon.store import jobs, leader, leases, operations


@dataclass
class Bench:
    desk: Desk
    reconciler: Reconciler

    async def look(self, *, later_s: float = 60.0) -> None:
        self.desk.clock.advance(later_s)
        await self.reconciler.run_once()

    def lease(self, number: int = INSTANCE) -> Lease:
        with self.desk.database.read() as c:
            found = leases.by_instance(c, number)
        assert found is not None
        return found

    def sent(self, kind: Kind) -> int:
        """A request of this kind about the machine, sent and not answered."""

        def change(c: object) -> int:
            operation = operations.intend(
                c, kind, self.desk.clock.wall_ms(), 1, {}, job_id=JOB, lease_id=self.lease().id, instance_id=INSTANCE,
                permit="unused" if kind is Kind.DESTROY else None,
            )  # type: ignore[arg-type]  # fmt: skip
            operations.set_state(c, operation, OpState.SENT, self.desk.clock.wall_ms())  # type: ignore[arg-type]
            return operation

        return int(self.desk.write(change))

    def operation(self, number: int) -> Operation:
        with self.desk.database.read() as c:
            return operations.get(c, number)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A job with a machine that the market lists."""
    desk = Desk(tmp_path)
    desk.write(lambda c: add_job(c))
    desk.write(lambda c: add_lease(c))
    desk.write(lambda c: leader.put_meta(c, "install_id", "test"))
    desk.market.instances = [instance(INSTANCE, f"hp-test-{JOB}-{INSTANCE}")]
    yield Bench(desk, Reconciler(desk.database, desk.world.operator, desk.clock, desk.world.settings.timing))
    desk.database.close()


async def test_a_machine_of_nobody_is_an_orphan_and_is_not_touched(bench: Bench) -> None:
    """Our label, and a job that this database does not have; another program's machine is not even noted."""
    bench.desk.market.instances += [instance(8, "hp-test-zzzzzz-n"), instance(9, "hp-test-odd"), instance(10, "theirs")]

    await bench.look()

    orphan = bench.lease(8)
    assert (orphan.job_id, orphan.state, orphan.status) == (None, LeaseState.LIVE, "running")
    with bench.desk.database.read() as c:
        assert leases.by_instance(c, 9) is leases.by_instance(c, 10) is None
    assert bench.desk.market.asked == []


@pytest.mark.parametrize("ended", [False, True])
async def test_a_machine_that_comes_back_is_its_jobs_again(bench: Bench, ended: bool) -> None:
    """LIVE if the job still wants one; else LOST, stopped in the same pass, and let go when nothing ran on it."""
    lease = bench.lease()
    bench.desk.write(lambda c: leases.set_state(c, lease, LeaseState.GONE, bench.desk.clock.wall_ms(), why="vanished"))
    if ended:
        bench.desk.write(lambda c: jobs.move(c, jobs.get(c, JOB), JobState.FAILED, 1, bench.desk.database.epoch))

    await bench.look()

    assert bench.lease().state is (LeaseState.LOST if ended else LeaseState.LIVE)
    asked = [("stop", INSTANCE), ("destroy", INSTANCE)] if ended else []
    assert bench.desk.market.asked == asked


async def test_a_machine_written_off_stays_written_off(bench: Bench) -> None:
    """It is watched, and what it is is known; the person said that it is theirs."""
    bench.desk.write(lambda c: leases.set_state(c, bench.lease(), LeaseState.WRITTEN_OFF, 1, why="written off"))

    await bench.look()

    assert (bench.lease().state, bench.lease().status) == (LeaseState.WRITTEN_OFF, "running")


@pytest.mark.parametrize(
    ("kind", "intended", "state"),
    [
        (Kind.START, "running", OpState.DONE),
        (Kind.START, "stopped", OpState.ABSENT),
        (Kind.STOP, "stopped", OpState.DONE),
        (Kind.STOP, "running", OpState.ABSENT),
    ],
)
async def test_a_listing_tells_what_became_of_a_start_or_stop(
    bench: Bench, kind: Kind, intended: str, state: OpState
) -> None:
    """By what the market intends, not by what the machine does yet."""
    operation = bench.sent(kind)
    bench.desk.market.instances = [instance(INSTANCE, bench.lease().label, intended=intended)]

    await bench.look()

    assert bench.operation(operation).state is state


@pytest.mark.parametrize("queues", [True, False])
async def test_a_start_that_only_queued_and_was_not_heard(bench: Bench, queues: bool) -> None:
    """Meant to run and without a GPU: a stop is due, and stored as one that was not sent. One that comes up is left."""
    bench.sent(Kind.START)
    status = "stopped" if queues else "loading"
    bench.desk.market.instances = [instance(INSTANCE, bench.lease().label, status=status)]

    await bench.look()

    with bench.desk.database.read() as c:
        stops = [op.state for op in operations.of_job(c, JOB) if op.kind is Kind.STOP]
    assert stops == ([OpState.ABSENT] if queues else [])


async def test_a_destroy_without_an_answer(bench: Bench) -> None:
    """Still listed long after: it went nowhere. Written off meanwhile and gone: done."""
    operation = bench.sent(Kind.DESTROY)

    await bench.look(later_s=1.0)
    assert bench.operation(operation).state is OpState.UNKNOWN
    await bench.look(later_s=bench.desk.world.settings.timing.destroy_resend + 1)
    assert bench.operation(operation).state is OpState.ABSENT

    again = bench.sent(Kind.DESTROY)
    bench.desk.write(lambda c: leases.set_state(c, bench.lease(), LeaseState.WRITTEN_OFF, 1, why="written off"))
    bench.desk.market.instances = []
    await bench.look()
    assert bench.operation(again).state is OpState.DONE


async def test_a_machine_that_is_gone_is_looked_for_once_more(bench: Bench) -> None:
    """Absent from listings half a minute apart, and the market's own null; a doubt of it waits for the next pass."""
    bench.desk.market.instances = []

    async def silent(number: int) -> None:
        raise MarketUnreachable("timed out")

    await bench.look()
    shown, bench.desk.market.show = bench.desk.market.show, silent  # type: ignore[method-assign]
    await bench.look()
    assert bench.lease().state is LeaseState.LIVE
    bench.desk.market.show = shown  # type: ignore[method-assign]
    await bench.look()
    assert bench.lease().state is LeaseState.GONE and bench.lease().recheck_at is not None

    await bench.look(later_s=bench.desk.world.settings.timing.gone_recheck + 1)

    assert bench.lease().recheck_at is None


@pytest.mark.parametrize("ours", [True, False])
async def test_a_receipt_permits_no_destroy_of_a_machine_that_only_its_label_makes_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    """The job has ended. What comes back from its destroy goes again; what a copy of this database rented may train."""
    asked: list[int] = []

    async def destroy(job: object, lease: Lease, why: str) -> None:
        asked.append(lease.instance_id)

    monkeypatch.setattr(bench.reconciler.operator, "destroy", destroy)
    bench.desk.write(lambda c: add_job(c, "ended1"))
    if ours:
        bench.desk.write(lambda c: start_stage(c, add_lease(c, "ended1", 99, LeaseState.LOST), job="ended1"))
    bench.desk.write(lambda c: c.exec_driver_sql("DROP TRIGGER illegal_edge"))
    bench.desk.write(lambda c: c.exec_driver_sql("DROP TRIGGER terminal_with_machine"))
    bench.desk.write(lambda c: c.exec_driver_sql("UPDATE jobs SET state = 'DESTROYED' WHERE id = 'ended1'"))
    late = instance(99, "hp-test-ended1-99")
    bench.desk.market.instances = [instance(INSTANCE, bench.lease().label), late]

    await bench.look()

    assert bench.lease(99).state is LeaseState.LOST
    assert asked == ([99] if ours else [])
    assert ("stop", 99) in bench.desk.market.asked


@pytest.mark.parametrize("trusted", [True, False])
async def test_only_a_trusted_listing_corrects_our_clock(bench: Bench, trusted: bool) -> None:
    """A process before this one lived a day ahead: what was stored then comes back, once the market shows the time."""
    world = bench.desk.clock
    now = world.wall_ms()
    clock = SteadyClock(world)
    clock.not_before(now + DAY_MS)
    bench.reconciler.clock = clock
    bench.desk.write(lambda c: leases.change(c, bench.lease().id, status_since=now + DAY_MS))

    async def listing() -> Listing:
        return Listing(trusted, (instance(INSTANCE, bench.lease().label),), market_ms=now)

    bench.desk.market.listing = listing  # type: ignore[method-assign]

    await bench.reconciler.run_once()

    assert clock.wall_ms() == (now if trusted else now + DAY_MS)
    assert bench.lease().status_since == (now if trusted else now + DAY_MS)


async def test_a_machine_that_no_create_made_has_cost_since_it_was_rented(bench: Bench) -> None:
    """As after a restore: the listing says since when, and until now no row of ours has counted."""
    ten_hours = 10 * 3_600_000
    late = replace(instance(8, f"hp-test-{JOB}-late"), start_ms=bench.desk.clock.wall_ms() - ten_hours)
    bench.desk.market.instances.append(late)

    await bench.look()

    lease = bench.lease(8)
    assert lease.created_at == late.start_ms
    assert lease.cost_at(bench.desk.clock.wall_ms()) == pytest.approx(20_000_000, rel=0.01)


async def test_once_charges_are_told_a_job_goes_on_by_itself(bench: Bench) -> None:
    """Held for them, it ends as its person wished meanwhile, without another word."""
    desk = bench.desk
    desk.write(lambda c: add_job(c, "second"))
    create = _unanswered(desk)
    desk.market.answers["charges"] = CredentialsRefused("needs billing_read")
    for _ in range(15):
        await bench.look()
    desk.write(lambda c: jobs.wish(c, jobs.get(c, "second"), Wish.CANCEL, desk.clock.wall_ms(), 1, by="me"))
    await bench.look()
    assert desk.job("second").hold_reason is HoldReason.UNANSWERED

    del desk.market.answers["charges"]
    await bench.look()

    assert bench.operation(create).state is OpState.ABSENT
    assert (desk.job("second").hold_reason, desk.job("second").wish) == (None, Wish.CANCEL)


async def test_a_machine_that_comes_late_ends_the_hold_for_its_answer(bench: Bench) -> None:
    """It is the job's, and nothing is doubtful any more."""
    desk = bench.desk
    desk.write(lambda c: add_job(c, "second"))
    _unanswered(desk)
    desk.market.answers["charges"] = CredentialsRefused("needs billing_read")
    for _ in range(15):
        await bench.look()

    desk.market.instances.append(instance(8, "hp-test-second-n"))
    await bench.look()

    assert (desk.job("second").hold_reason, bench.lease(8).state) == (None, LeaseState.LIVE)


def _unanswered(desk: Desk) -> int:
    """A create of the second job whose reply was lost."""

    def intend(c: Any) -> int:
        create = operations.intend(
            c,
            Kind.CREATE,
            desk.clock.wall_ms(),
            1,
            {"challenge": "c", "terms": {}},
            job_id="second",
            label="hp-test-second-n",
        )
        for state in (OpState.SENT, OpState.UNKNOWN):
            operations.set_state(c, create, state, desk.clock.wall_ms())
        return create

    return int(desk.write(intend))


@pytest.mark.parametrize(
    ("error", "listings"), [(CredentialsRefused("needs billing_read"), 12), (MarketUnreachable("a charge"), 75)]
)
async def test_a_create_of_which_no_charge_is_told_holds_its_job(bench: Bench, error: Exception, listings: int) -> None:
    """Nothing is rented again, and its person hears of it: at once where the key may not read charges."""
    desk = bench.desk
    desk.write(lambda c: add_job(c, "second"))
    create = _unanswered(desk)
    desk.market.answers["charges"] = error

    held = []
    for _ in range(listings):
        await bench.look()
        held.append(desk.job("second").hold_reason)

    assert (held[5], held[-1]) == (None, HoldReason.UNANSWERED)
    assert bench.operation(create).state is OpState.UNKNOWN
