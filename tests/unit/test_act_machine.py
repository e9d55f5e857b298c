"""What is done with machines: the offer that is taken, and a machine that is no good."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk import Counter
from scripted_market import OFFER, instance
from store import NOW, start_stage

from daemon.artifacts import folder as model_folder
from daemon.box.box import BoxStatus
from daemon.control import accounts, act_machine
from daemon.control import provision as provisioning
from daemon.control.provision import AnotherAttempt, DataRefused, IntegrationRefused
from daemon.domain import actions
from daemon.domain.actions import Provision, Rent
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import Trigger
from daemon.domain.market import Charge, Listing, Offer, OfferQuery
from daemon.domain.records import Lease, LeaseState, OpState, Wish
from daemon.errors import CredentialsRefused, HomeportError, MarketUnreachable, NoCredit, OfferGone, RemoteFailed
from daemon.market.port import Reply
from daemon.store import events, jobs, leader, leases, machines
from remote_payload.contract import Prepared


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    found = await Counter.open(tmp_path)
    yield found
    found.desk.database.close()


def offering(counter: Counter, answers: dict[int, Reply | Exception]) -> None:
    """The market's offers, each with its answer to a create."""
    market = counter.desk.market

    async def search(query: OfferQuery) -> list[Offer]:
        return [replace(OFFER, id=number, machine_id=number) for number in answers]

    async def create(request: Any) -> Reply:
        market.asked.append(("create", request.offer_id))
        answer = answers[request.offer_id]
        if isinstance(answer, Exception):
            raise answer
        return answer

    market.search, market.create = search, create  # type: ignore[method-assign]


async def test_the_next_offer_is_tried_only_after_a_definite_refusal(counter: Counter) -> None:
    """Taken offers are passed over; the first that is rented ends the looking."""
    offering(counter, {1: OfferGone("taken"), 2: Reply(200, "{}", instance_id=77), 3: Reply(200, "{}", instance_id=78)})

    await counter.do(Rent())

    assert [call for call in counter.desk.market.asked if call[0] == "create"] == [("create", 1), ("create", 2)]
    assert [lease.instance_id for lease in counter.desk.leases(counter.job.id)] == [77]


async def test_a_create_without_an_answer_ends_the_looking(counter: Counter) -> None:
    """It may have rented: nothing else is asked for until that is known."""
    offering(counter, {1: MarketUnreachable("timed out"), 2: Reply(200, "{}", instance_id=78)})

    await counter.do(Rent())

    assert [op.state for op in counter.creates] == [OpState.UNKNOWN]


async def test_an_answer_without_an_instance_is_unknown(counter: Counter) -> None:
    offering(counter, {1: Reply(200, "{}")})

    await counter.do(Rent())

    assert [(op.state, op.error) for op in counter.creates] == [(OpState.UNKNOWN, "the reply names no instance")]


async def test_nothing_is_rented_beside_a_machine_that_came_back(counter: Counter) -> None:
    """It was gone when this was decided, and the listing in between shows it again: the job decides anew."""
    offering(counter, {1: Reply(200, "{}", instance_id=78)})
    decided = counter.look()
    counter.machine()

    await counter.driver._guarded(decided, Rent())

    assert ([op.state for op in counter.creates], counter.held) == ([OpState.DONE], None)  # that of the machine
    assert not [call for call in counter.desk.market.asked if call[0] == "create"]


async def test_without_credit_the_job_is_held(counter: Counter) -> None:
    offering(counter, {1: NoCredit("no credit"), 2: Reply(200, "{}", instance_id=78)})

    await counter.do(Rent())

    assert counter.held is HoldReason.NO_CREDIT and len(counter.creates) == 1


async def test_that_nothing_fits_is_noted_once(counter: Counter) -> None:
    """With the reasons, and since when: the plan holds the job for it in the end."""
    offering(counter, {})

    for _ in range(2):
        await counter.do(Rent())

    with counter.desk.database.read() as c:
        told = c.exec_driver_sql("SELECT count(*) FROM events WHERE kind = 'market.nothing_fits'").scalar()
    assert told == 1
    assert (
        counter.driver.memory.nothing_fits_since_ms
        == counter.driver.memory.asked_market_ms
        == counter.desk.clock.wall_ms()
    )


async def test_nothing_is_rented_while_the_listing_cannot_be_trusted(counter: Counter) -> None:
    """With a key that works, it is only waited."""
    offering(counter, {1: Reply(200, "{}", instance_id=77)})

    async def untrusted() -> Listing:
        return Listing(trusted=False, problem="a page is missing")

    counter.desk.market.listing = untrusted  # type: ignore[method-assign]

    await counter.do(Rent())

    assert counter.creates == [] and len(counter.pauses) == 1


async def test_a_refused_key_does_not_wait_in_silence(counter: Counter) -> None:
    """No listing can be trusted without a key that works: the job says so instead of looking for offers for ever."""
    counter.desk.market.answers["account"] = CredentialsRefused("bad key")

    with pytest.raises(CredentialsRefused):
        await counter.do(Rent())


async def test_nothing_is_rented_in_another_account_than_what_bills(counter: Counter) -> None:
    """A key of another account: whose machines they are is asked before anything is rented."""
    offering(counter, {1: Reply(200, "{}", instance_id=77)})
    counter.desk.write(lambda c: leader.put_meta(c, accounts.ACCOUNT, "1"))
    counter.desk.write(lambda c: leases.add(c, None, 4711, "hp-orphan", LeaseState.LIVE, NOW))
    counter.desk.market.user = 2

    with pytest.raises(CredentialsRefused, match="of account 2, but of account 1 is instance"):
        await counter.do(Rent())

    assert counter.creates == []


async def test_a_machine_of_this_job_that_we_do_not_know_stops_the_renting(counter: Counter) -> None:
    """One of another database holds the job; one that our own unanswered create made is left to reconcile."""
    counter.desk.market.instances = [instance(9, f"hp-other-{counter.job.id}-nonce")]
    await counter.do(Rent())
    assert counter.held is HoldReason.RESTORED and counter.creates == []


async def test_a_late_machine_of_an_unanswered_create_is_left_to_reconcile(counter: Counter) -> None:
    offering(counter, {1: MarketUnreachable("timed out")})
    await counter.do(Rent())
    counter.desk.market.instances = [instance(9, counter.creates[0].label)]

    await counter.do(Rent())

    assert counter.held is None and len(counter.creates) == 1 and len(counter.pauses) == 1


REFUSALS: list[tuple[HomeportError, HoldReason]] = [
    (IntegrationRefused("line"), HoldReason.INTEGRATION),
    (DataRefused("row 7"), HoldReason.DATA),
    (AnotherAttempt("another"), HoldReason.RESTORED),
]


def ready_ends_in(counter: Counter, monkeypatch: pytest.MonkeyPatch, error: HomeportError) -> None:
    async def to(lease: Lease) -> Any:
        return None  # nothing happens to it: what is tested is what its making ready ends in

    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(counter.driver.link, "to", to)
    monkeypatch.setattr(act_machine, "provision", fail)


@pytest.mark.parametrize(("error", "held"), REFUSALS, ids=lambda value: getattr(value, "value", ""))
async def test_what_is_wrong_with_the_data_holds_the_job(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, error: HomeportError, held: HoldReason
) -> None:
    """Another machine would object as well; this one stays for the person to look at."""
    lease = counter.machine()
    ready_ends_in(counter, monkeypatch, error)

    await counter.do(Provision(lease))

    assert counter.held is held and counter.desk.market.asked == []


@pytest.mark.parametrize("begun", [False, True])
async def test_a_machine_that_is_no_good_is_returned_unless_work_was_begun_on_it(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Remembered in both cases; with work on it the job is held, and nothing is destroyed."""
    lease = counter.machine()
    if begun:
        counter.desk.write(lambda c: start_stage(c, lease.id, job=counter.job.id))
    ready_ends_in(counter, monkeypatch, RemoteFailed("preflight: no GPU", exit_code_remote=3, output="\x1b[0m"))

    await counter.do(Provision(lease))

    with counter.desk.database.read() as c:
        assert list(machines.bad(c, counter.desk.clock.wall_ms())) == [5]
    assert counter.held is (HoldReason.INTERNAL if begun else None)
    assert counter.desk.market.asked == ([] if begun else [("destroy", 77)])


ANSWERS = {
    "status": BoxStatus(False, None, "boot", 0, 0),
    "preflight": {"ok": True, "gpus": [{}]},
    "prepare": Prepared(True, "", 40, 0),
    "bootstrap": "python",
}


@pytest.mark.parametrize(("changes", "held"), [(False, None), (True, HoldReason.DATA)])
async def test_a_base_folder_that_changed_is_given_to_no_second_machine(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, changes: bool, held: HoldReason | None
) -> None:
    """What was trained on one base goes on on no other: its file is named, and the way back."""
    lease, sent = counter.machine(), list[Any]()

    class Box:
        """Takes everything, and counts nothing."""

        def __getattr__(self, name: str) -> Any:
            async def call(*given: Any) -> Any:
                if name == "upload":
                    sent.append(given)
                return ANSWERS.get(name)

            return call

    async def to(lease: Lease) -> Any:
        return Box()

    monkeypatch.setattr(counter.driver.link, "to", to)
    monkeypatch.setattr(provisioning, "check", lambda *given: None)
    monkeypatch.setattr(act_machine, "calling", lambda box: contextlib.nullcontext())
    await counter.do(Provision(lease))
    if changes:
        (counter.desk.folder / "base/config.json").write_text('{"another": 1}')

    await counter.do(Provision(lease))

    assert counter.held is held
    assert len(sent) == (1 if changes else 2)
    assert "config.json" in (counter.look().job.hold_detail or "config.json")


async def test_a_host_that_went_away_leaves_the_job_a_new_attempt(counter: Counter) -> None:
    """Its machine LOST and remembered, whatever the market calls its host."""
    lease = counter.machine()

    await counter.do(actions.MarkLost(lease, "offline"))

    assert [each.state for each in counter.desk.leases(counter.job.id)] == [LeaseState.LOST]
    assert counter.look().job.attempt == 2


@pytest.mark.parametrize("there", [True, False])
async def test_without_the_disk_of_what_was_saved_nothing_begins_anew(counter: Counter, there: bool) -> None:
    """Its folder is gone although checkpoints came home: a disk that is not mounted costs no training."""
    lease = counter.machine()
    counter.desk.write(lambda c: events.add(c, "checkpoint.home", NOW, job=counter.job.id, stage="SFT", step=100))
    if there:
        counter.desk.world.mirror_folder(counter.job.id).mkdir(parents=True)

    await counter.do(actions.MarkLost(lease, "offline"))

    assert counter.held is (None if there else HoldReason.DISK_FULL)
    assert counter.look().job.attempt == (2 if there else 1)
    assert there or "mkdir" in (counter.look().job.hold_detail or "")


async def test_a_key_that_cannot_be_attached_is_no_reason_to_stop(counter: Counter) -> None:
    """The next login shows whether it is let in; without a machine there is nothing to attach it to."""
    await counter.driver.acting.attach_key(counter.look())
    assert counter.desk.market.asked == []
    counter.machine()
    counter.desk.market.answers["attach_key"] = MarketUnreachable("timed out")

    await counter.driver.acting.attach_key(counter.look())

    assert counter.desk.market.asked == [("attach_key", 77)]


async def test_a_model_that_the_database_has_forgotten_is_not_trained_again(counter: Counter) -> None:
    """It came home after the copy was made that was put back: its folder is named, and nothing is rented."""
    home = counter.desk.world.settings.paths.models / counter.job.name / f"v1-{counter.job.id}"
    home.mkdir(parents=True)
    (home / model_folder.RECEIPT).write_text("{}")

    await counter.do(Rent())

    assert (counter.held, counter.creates) == (HoldReason.RESTORED, [])
    assert str(home) in (counter.look().job.hold_detail or "")

    (home / model_folder.RECEIPT).unlink()
    await counter.do(Rent())
    assert len(counter.creates) == 1


CHARGE = Charge(77, None, 250_000, NOW, NOW + 3_600_000)


@pytest.mark.parametrize(
    ("charges", "settled"), [([CHARGE], 250_000), ([], None), (MarketUnreachable("timed out"), None)]
)
async def test_a_job_ends_whether_or_not_its_charges_are_known(
    counter: Counter, charges: list[Charge] | Exception, settled: int | None
) -> None:
    """They come later than we ask, or not at all: then what we counted stays."""
    lease = counter.machine()
    counter.desk.write(lambda c: leases.set_state(c, lease, LeaseState.GONE, NOW, why="destroyed"))
    if isinstance(charges, Exception):
        counter.desk.market.answers["charges"] = charges
    else:
        counter.desk.market.billed = charges

    await counter.do(actions.Move(Trigger.CANCEL, "by wish"))

    assert counter.look().job.state.is_terminal
    with counter.desk.database.read() as c:
        assert c.exec_driver_sql("SELECT settled_cost FROM leases").scalar() == settled


@pytest.mark.parametrize(("wish", "remembered"), [(None, [5]), (Wish.CANCEL, [])])
async def test_a_machine_that_failed_us_is_not_rented_again_soon(
    counter: Counter, wish: Wish | None, remembered: list[int]
) -> None:
    """It is the cheapest, and would be the next one too. One that only its person does not need has done nothing."""
    lease = counter.machine()
    if wish is not None:
        counter.desk.write(lambda c: jobs.wish(c, jobs.get(c, counter.job.id), wish, NOW, 1, by="me"))

    await counter.do(actions.Destroy(lease, "runs, but no login was possible"))

    assert counter.desk.market.asked == [("destroy", 77)]
    with counter.desk.database.read() as c:
        assert list(machines.bad(c, NOW)) == remembered
