"""Intent, send, record: no operation is left without somebody who will resolve it, whatever cuts it short."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from scripted_market import OFFER, ScriptedMarket, instance
from store import INSTANCE, JOB, add_job, add_lease, opened, start_stage

from daemon.clock import ManualClock
from daemon.control.operate import Operator, presume_work, recover
from daemon.control.permits import NoPermit
from daemon.control.reconcile import Reconciler
from daemon.domain.holds import HoldReason
from daemon.domain.market import Charge
from daemon.domain.money import MICRO
from daemon.domain.records import Job, Kind, Lease, LeaseState, Operation, OpState
from daemon.errors import CredentialsRefused, LostRace, MarketRefused, MarketUnreachable
from daemon.market.port import Reply
from daemon.settings import Settings, load
from daemon.store import events, jobs, leader, leases, operations
from daemon.store.database import Database

HOLD = 2 * MICRO


@dataclass
class Bench:
    """A job, its database, a scripted market, and the two that act on them."""

    database: Database
    market: ScriptedMarket
    clock: ManualClock
    operator: Operator
    reconciler: Reconciler

    @property
    def job(self) -> Job:
        with self.database.read() as c:
            return jobs.get(c, JOB)

    @property
    def leases(self) -> list[Lease]:
        with self.database.read() as c:
            return leases.of_job(c, JOB)

    def operations(self, kind: Kind) -> list[Operation]:
        with self.database.read() as c:
            return [op for op in operations.of_job(c, JOB) if op.kind is kind]

    def rented(self, **values: object) -> Lease:
        with self.database.write() as c:
            return leases.get(c, add_lease(c, **values))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    database = opened(tmp_path)
    settings: Settings = load({"HOMEPORT_HOME": str(tmp_path)})
    market, clock = ScriptedMarket(), ManualClock()
    operator = Operator(database, market, clock, settings)
    with database.write() as c:
        add_job(c)
        leader.put_meta(c, "install_id", "test")
    yield Bench(database, market, clock, operator, Reconciler(database, operator, clock, settings.timing))
    database.close()


async def test_a_refused_key_refuses_the_create(bench: Bench) -> None:
    """Nothing was rented: the operation is REFUSED, so that the job does not wait for an answer for ever."""
    bench.market.answers["create"] = CredentialsRefused("bad key")

    with pytest.raises(CredentialsRefused):
        await bench.operator.rent(bench.job, OFFER, 10, HOLD)

    assert [op.state for op in bench.operations(Kind.CREATE)] == [OpState.REFUSED]


async def test_a_destroy_that_is_cut_short_is_resolved(bench: Bench) -> None:
    """A command cancels the task in the middle of the call: the next pass knows that nobody waits for the answer."""
    lease = bench.rented()
    bench.market.gate = asyncio.Event()
    destroying = asyncio.create_task(bench.operator.destroy(bench.job, lease, "unfit"))
    await bench.market.called.wait()
    bench.market.instances = [instance(INSTANCE)]

    await bench.reconciler.run_once()
    assert [op.state for op in bench.operations(Kind.DESTROY)] == [OpState.SENT]  # it is still waited for
    destroying.cancel()
    await asyncio.gather(destroying, return_exceptions=True)
    await bench.reconciler.run_once()

    assert [op.state for op in bench.operations(Kind.DESTROY)] == [OpState.UNKNOWN]


async def test_an_intent_that_never_left_is_absent(bench: Bench) -> None:
    """Its SENT could not be committed: nothing was asked of the market, and nothing waits for it."""
    with bench.database.write() as c:
        operations.intend(c, Kind.CREATE, bench.clock.wall_ms(), 1, {}, job_id=JOB, label="hp-test-abc123-x")

    await bench.reconciler.run_once()

    assert [op.state for op in bench.operations(Kind.CREATE)] == [OpState.ABSENT]


async def test_a_listing_quicker_than_a_lost_answer(bench: Bench) -> None:
    """The machine is listed and adopted while the create still waits; its time-out then changes nothing."""
    bench.market.gate = asyncio.Event()
    bench.market.answers["create"] = MarketUnreachable("no answer")
    renting = asyncio.create_task(bench.operator.rent(bench.job, OFFER, 10, HOLD))
    await bench.market.called.wait()
    bench.market.instances = [instance(INSTANCE, bench.operations(Kind.CREATE)[0].label)]

    await bench.reconciler.run_once()
    bench.market.gate.set()

    assert await renting is None
    assert [op.state for op in bench.operations(Kind.CREATE)] == [OpState.DONE]
    assert [lease.instance_id for lease in bench.leases] == [INSTANCE]


async def test_a_refusal_that_rented_all_the_same(bench: Bench) -> None:
    """The market said no and made a machine: it is recognised by its label, and the pass goes on."""
    bench.market.answers["create"] = MarketRefused("no", status=400, body='{"success": false}')
    with pytest.raises(MarketRefused):
        await bench.operator.rent(bench.job, OFFER, 10, HOLD)
    bench.market.instances = [instance(INSTANCE, bench.operations(Kind.CREATE)[0].label)]

    await bench.reconciler.run_once()

    assert [(lease.instance_id, lease.state) for lease in bench.leases] == [(INSTANCE, LeaseState.LIVE)]
    assert [op.state for op in bench.operations(Kind.CREATE)] == [OpState.REFUSED]


async def test_a_command_comes_before_a_create(bench: Bench) -> None:
    """The job was held while offers were looked for: nothing is rented on the old decision."""
    read = bench.job
    with bench.database.write() as c:
        jobs.change(c, read, bench.clock.wall_ms(), 1)

    with pytest.raises(LostRace):
        await bench.operator.rent(read, OFFER, 10, HOLD)

    assert not bench.market.asked and not bench.operations(Kind.CREATE)


async def test_a_refused_key_does_not_end_the_passes(bench: Bench) -> None:
    """A late arrival that cannot be stopped now is noted; the loop that confirms everything else lives on."""
    bench.rented(state=LeaseState.LOST)
    bench.market.instances = [instance(INSTANCE)]
    bench.market.answers |= {"stop": CredentialsRefused("bad key"), "destroy": CredentialsRefused("bad key")}

    listing = await bench.reconciler.run_once()

    assert listing.trusted
    assert {call for call, _ in bench.market.asked} == {"stop", "destroy"}


async def test_a_create_is_not_absent_before_it_was_sent(bench: Bench) -> None:
    """A pass long ago, then a create, then a pass: only what was waited since the create counts as evidence."""
    await bench.reconciler.run_once()
    bench.clock.advance(3600.0)
    bench.market.answers["create"] = MarketUnreachable("timed out")
    await bench.operator.rent(bench.job, OFFER, 10, HOLD)
    bench.clock.advance(30.0)

    await bench.reconciler.run_once()

    [create] = bench.operations(Kind.CREATE)
    assert (create.absent_count, create.absent_awake_s) == (1, 30.0)


async def test_a_create_that_was_charged_and_never_listed(bench: Bench) -> None:
    """It bills and no listing shows it: ended by its id as unused, and nobody has to be asked."""
    bench.market.answers["create"] = MarketUnreachable("timed out")
    await bench.operator.rent(bench.job, OFFER, 10, HOLD)
    [create] = bench.operations(Kind.CREATE)
    bench.market.billed = [Charge(INSTANCE, create.label, 1_000, None, None)]

    for _ in range(30):  # well beyond the listings and the time awake that a create is waited for
        bench.clock.advance(60.0)
        await bench.reconciler.run_once()

    [lease] = bench.leases
    assert (lease.instance_id, lease.state, bench.job.hold_reason) == (INSTANCE, LeaseState.GONE, None)
    assert ("destroy", INSTANCE) in bench.market.asked
    assert [op.state for op in bench.operations(Kind.CREATE)] == [OpState.DONE]


@pytest.mark.parametrize("asked", [False, True], ids=["rented", "asked for"])
async def test_another_accounts_list_says_nothing_of_our_machines(bench: Bench, asked: bool) -> None:
    """There all of them look gone: nothing is confirmed, and nothing else rented, until our key is back."""
    await bench.reconciler.run_once()
    if asked:
        bench.market.answers["create"] = MarketUnreachable("timed out")
        await bench.operator.rent(bench.job, OFFER, 10, HOLD)
    else:
        bench.rented()
    bench.market.user = 2

    for _ in range(30):
        bench.clock.advance(60.0)
        listing = await bench.reconciler.run_once()

    assert not listing.trusted and "account 2" in listing.problem
    assert [lease.state for lease in bench.leases] == ([] if asked else [LeaseState.LIVE])
    assert [op.state for op in bench.operations(Kind.CREATE)] == [OpState.UNKNOWN if asked else OpState.DONE]
    bench.market.user = 1
    assert (await bench.reconciler.run_once()).trusted


async def test_another_account_may_take_over_once_nothing_is_rented(bench: Bench) -> None:
    """Also where the answer to a stage's start never came, and its machine is gone long since."""
    await bench.reconciler.run_once()
    gone = bench.rented(state=LeaseState.GONE)
    with bench.database.write() as c:
        start_stage(c, gone.id, OpState.UNKNOWN)
    bench.market.user = 2

    assert (await bench.reconciler.run_once()).trusted


@pytest.mark.parametrize("told_by", ["the reply", "a charge"])
async def test_a_machine_that_is_anothers_is_not_taken(bench: Bench, told_by: str) -> None:
    """The market names the machine of another job as what it rented out: by this job it would count as unused."""
    with bench.database.write() as c:
        add_job(c, "other")
        theirs = add_lease(c, "other")
        start_stage(c, theirs)
    bench.market.instances = [instance(INSTANCE)]
    reply = Reply(200, "{}", instance_id=INSTANCE)
    bench.market.answers["create"] = reply if told_by == "the reply" else MarketUnreachable("timed out")

    assert await bench.operator.rent(bench.job, OFFER, 10, HOLD) is None

    [create] = bench.operations(Kind.CREATE)
    if told_by == "a charge":
        bench.market.billed = [Charge(INSTANCE, create.label, 1_000, None, None)]
    for _ in range(30):
        bench.clock.advance(60.0)
        await bench.reconciler.run_once()
    assert bench.leases == [] and ("destroy", INSTANCE) not in bench.market.asked
    if told_by == "a charge":
        assert bench.job.hold_reason is HoldReason.UNANSWERED


async def test_a_late_machine_that_is_not_let_go_disturbs_no_act(bench: Bench) -> None:
    """Its destroy is asked for again and again, while an act of an hour has still to store what came of it."""
    late, before = bench.rented(state=LeaseState.LOST), bench.job
    bench.market.answers["destroy"] = MarketRefused("not today")

    with pytest.raises(MarketRefused):
        await bench.operator.destroy(bench.job, late, "arrived late")

    assert bench.job.version == before.version


async def test_a_machine_that_comes_back_while_another_may_come(bench: Bench) -> None:
    """The job had it confirmed gone and asked for the next: whatever the answer, it works on one machine at most."""
    gone = bench.rented()
    with bench.database.write() as c:
        leases.set_state(c, gone, LeaseState.GONE, bench.clock.wall_ms(), why="vanished")
    bench.market.answers["create"] = MarketUnreachable("timed out")
    await bench.operator.rent(bench.job, OFFER, 10, HOLD)
    bench.market.instances = [instance(INSTANCE)]

    await bench.reconciler.run_once()

    assert [lease.state for lease in bench.leases] == [LeaseState.LOST]


async def test_a_lost_machine_that_worked_is_kept(bench: Bench) -> None:
    """It reappears: stopped in the same pass, and never destroyed without its job's receipt."""
    lease = bench.rented(state=LeaseState.LOST)
    with bench.database.write() as c:
        start_stage(c, lease.id)
    bench.market.instances = [instance(INSTANCE)]

    await bench.reconciler.run_once()

    assert bench.market.asked == [("stop", INSTANCE)]


async def test_killed_between_a_queued_start_and_its_stop(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop is written down with the answer to the start: the next process finds that it has to be sent."""
    lease = bench.rented()
    bench.market.answers = {"start": Reply(200, "{}", queued=True)}
    sent = bench.operator.sent

    def killed_before_the_stop(operation: int) -> None:
        if bench.market.asked:
            raise KeyboardInterrupt
        sent(operation)

    monkeypatch.setattr(bench.operator, "sent", killed_before_the_stop)
    with pytest.raises(KeyboardInterrupt):
        await bench.operator.start(lease)
    recover(bench.database, bench.clock.wall)

    with bench.database.read() as c:
        found = [(op.kind, op.state) for op in operations.of_lease(c, lease.id)]
    assert found == [(Kind.START, OpState.DONE), (Kind.STOP, OpState.ABSENT)]


async def test_a_stop_of_the_clocks_future_is_repeated_when_its_time_is_over(bench: Bench) -> None:
    """The clock was set back after an earlier stop: it counts as one of now, not of an hour ahead."""
    lease = bench.rented(state=LeaseState.LOST)
    with bench.database.write() as c:
        start_stage(c, lease.id)
    await bench.operator.stop(lease, "held for its limit")
    bench.clock.wall -= 3_600_000
    bench.market.instances, bench.market.asked = [instance(INSTANCE)], []

    await bench.reconciler.run_once()
    at_once = list(bench.market.asked)
    bench.clock.advance(bench.reconciler.timing.destroy_resend + 1)
    await bench.reconciler.run_once()

    assert (at_once, bench.market.asked) == ([], [("stop", INSTANCE)])


async def test_the_key_of_the_instance_is_not_kept(bench: Bench) -> None:
    """The create's reply is stored as it came, but for the key in it."""
    body = '{"success": true, "new_contract": 77, "instance_api_key": "very-secret"}'
    bench.market.answers["create"] = Reply(200, body, instance_id=INSTANCE)

    await bench.operator.rent(bench.job, OFFER, 10, HOLD)

    [create] = bench.operations(Kind.CREATE)
    assert create.reply is not None and '"new_contract": 77' in create.reply
    assert "very-secret" not in create.reply


async def test_nothing_is_unused_after_a_restore(bench: Bench) -> None:
    """Yesterday's database does not know the stages of today: its empty machine may hold a model."""
    lease = bench.rented()
    with bench.database.write() as c:
        presume_work(c, lease, bench.clock.wall_ms(), 1)

    with pytest.raises(NoPermit):
        await bench.operator.destroy(bench.job, lease, "nothing was started on it")

    assert not bench.market.asked


async def test_a_machine_that_a_restored_database_forgot(bench: Bench) -> None:
    """Its label names the job: it is the job's, it may hold a model, and a person is asked before anything is done."""
    bench.market.instances = [instance(INSTANCE, f"hp-test-{JOB}-0123456789")]

    await bench.reconciler.run_once()

    [lease] = bench.leases
    assert (lease.instance_id, lease.state, bench.job.hold_reason) == (INSTANCE, LeaseState.LIVE, HoldReason.RESTORED)
    with pytest.raises(NoPermit):
        await bench.operator.destroy(bench.job, lease, "nothing was started on it")


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_machine_whose_answer_a_restored_database_lacks(bench: Bench, resumed: bool) -> None:
    """The backup was made while the create was out: what was started on the machine since is in no row."""
    bench.market.answers["create"] = MarketUnreachable("timed out")
    await bench.operator.rent(bench.job, OFFER, 10, HOLD)
    [create] = bench.operations(Kind.CREATE)
    with bench.database.write() as c:
        events.add(c, "daemon.restored", bench.clock.wall_ms(), why="restored")
        jobs.hold(c, bench.job, HoldReason.RESTORED, "restored", bench.clock.wall_ms(), 1)
    if resumed:
        with bench.database.write() as c:
            jobs.release(c, bench.job, bench.clock.wall_ms(), 1, by="me")
    bench.market.instances = [instance(INSTANCE, create.label)]

    await bench.reconciler.run_once()

    [lease] = bench.leases
    with pytest.raises(NoPermit):
        await bench.operator.destroy(bench.job, lease, "nothing was started on it")


async def test_a_high_water_file_that_cannot_be_written_costs_no_pass(bench: Bench) -> None:
    """The listing is applied all the same: what bills has to be seen on a full disk too."""
    lease = bench.rented(status="loading")
    bench.market.instances = [instance(INSTANCE)]
    (bench.database.path.parent / "high-water.tmp").mkdir()

    await bench.reconciler.run_once()

    (seen,) = bench.leases
    assert (lease.status, seen.status) == ("loading", "running")
