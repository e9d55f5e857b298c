"""Every check of this tier is seen to fire: a run that went well, one thing in it made wrong, and one look at it."""

from __future__ import annotations

import math
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .box_disk import made
from .invariants import CHECKED, Witness
from .loop import LIFE, Life
from .machine import Machine
from .market import ANOTHERS, CANARY, FOREIGN, OFFER, OURS, Given
from .person import Person
from .simulation import Simulation

RENTED = 1000  # the machine of the run


@dataclass
class Ended:
    """The world after a job that ended DESTROYED. `spoil` works on its database without triggers and indexes."""

    sim: Simulation
    kept: dict[Path, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        paths = self.sim.settings.paths
        self.kept = {p: p.read_bytes() for p in (paths.database, Path(f"{paths.database}-wal")) if p.exists()}
        self.machines, self.disks = dict(self.sim.market.machines), dict(self.sim.boxes.disks)
        self.clock, self.rented = vars(self.sim.clock).copy(), vars(self.machines[RENTED]).copy()
        shutil.copytree(paths.models, self.sim.root / "as-it-was")

    def restore(self) -> None:
        sim, models = self.sim, self.sim.settings.paths.models
        sim.witness.close()
        sim.put_back(self.kept)
        shutil.rmtree(models)
        shutil.copytree(sim.root / "as-it-was", models)
        sim.market.machines, sim.boxes.disks = dict(self.machines), dict(self.disks)
        vars(sim.clock).update(self.clock)
        vars(sim.market.machines[RENTED]).update(self.rented)
        sim.market.creates.clear()
        sim.market.account_of_key = OURS
        sim.market.given.clear()
        sim.person, sim.witness = Person(sim), Witness(sim)
        sim.disk.changes.clear()
        del sim.lives[1:]

    def spoil(self, statement: str) -> None:
        with sqlite3.connect(self.sim.settings.paths.database) as c:
            for kind, name in c.execute(
                "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL"
            ).fetchall():
                c.execute(f'DROP {kind} "{name}"')
            c.execute(statement)
        c.close()

    def once_more(self, table: str, **changes: object) -> None:
        """The first row of `table` a second time, with `changes`."""
        with sqlite3.connect(self.sim.settings.paths.database) as c:
            columns = [row[1] for row in c.execute(f"PRAGMA table_info({table})") if row[1] != "id"]
            values = ", ".join("?" if name in changes else name for name in columns)
            given = [changes[name] for name in columns if name in changes]
            c.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} LIMIT 1", given)
        c.close()

    def model(self) -> Path:
        return next(self.sim.settings.paths.models.glob("*/v*/*.gguf"))

    def comes_back(self) -> None:
        self.sim.market.machines[RENTED].ended_at = self.sim.market.machines[RENTED].ends_at = None

    def send(self, what: str, instance: int = RENTED, **more: str) -> None:
        self.sim.witness.wire.request(what, instance, self.sim.lives[0], **more)


def _destroy_without_a_model(w: Ended) -> None:
    w.model().unlink()
    w.send("destroy")


def _destroy_by_another_set(w: Ended) -> None:
    w.spoil("UPDATE jobs SET manifest_sha256 = 'of the next attempt'")
    w.send("destroy")


def _typed_once_destroyed_twice(w: Ended) -> None:
    w.model().unlink()
    w.sim.person.types(next(iter(w.sim.jobs)), RENTED)
    w.spoil("UPDATE operations SET state = 'SENT' WHERE kind = 'destroy'")
    w.send("destroy")
    assert not w.sim.witness.violations
    w.send("destroy")


def _typed_for_another_job(w: Ended) -> None:
    w.model().unlink()
    w.sim.person.types("another", RENTED)
    w.send("destroy")


def _receipt_of_another_job(w: Ended) -> None:
    w.model().parent.rename(w.model().parent.with_name("v1-another"))
    w.send("destroy")


def _typed_long_ago(w: Ended) -> None:
    w.model().unlink()
    w.sim.person.tokens[RENTED] = [w.sim.clock.boot() - 3600.0]
    w.send("destroy")


def _receipt_before_the_sync(w: Ended) -> None:
    w.sim.witness.committed()
    folder = w.model().parent
    w.sim.disk.follow("os.rename", (folder, folder))
    w.once_more("receipts")
    w.sim.witness.committed()


def _downloaded_and_not_here(w: Ended) -> None:
    w.model().unlink()
    w.spoil("UPDATE jobs SET state = 'GGUF'")
    w.sim.witness.committed()
    w.spoil("UPDATE jobs SET state = 'DOWNLOADED'")
    w.sim.witness.committed()


def _receipt_of_other_bytes(w: Ended) -> None:
    w.model().chmod(0o600)
    w.model().write_bytes(b"other")
    w.sim.witness.committed()


def _torn_file(w: Ended) -> None:
    w.model().chmod(0o600)
    w.model().write_bytes(w.model().read_bytes()[:100])
    w.sim.witness.after_death()


def _two_machines(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LIVE'")
    w.once_more("leases", instance_id=FOREIGN[0], label="hp-b")
    w.sim.witness.committed()


def _machine_and_open_create(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LIVE'")
    w.spoil("UPDATE operations SET state = 'UNKNOWN' WHERE kind = 'create'")
    w.sim.witness.committed()


def _lost_runs_on(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LOST'")
    for _ in range(6):
        w.sim.witness.listed({RENTED}, {})
        w.sim.clock.run_until(w.sim.clock.mono() + 31.0)


def _start_left_queued(w: Ended) -> None:
    for _ in range(6):
        w.sim.witness.listed(set(), {RENTED: Life(1, OURS)})
        w.sim.clock.run_until(w.sim.clock.mono() + 31.0)


def _hold_without_an_end(w: Ended) -> None:
    _runs_on(w, "hold_reason = 'BY_PERSON', state = 'SFT'", 3660.0 + 60.0)


def _hold_spent_before_the_key_changed(w: Ended) -> None:
    _runs_on(w, "hold_reason = 'BY_PERSON', state = 'SFT'", 3000.0)
    for account in (ANOTHERS, OURS):
        w.sim.market.account_of_key = account
        w.sim.witness.committed()
    w.sim.clock.run_until(w.sim.clock.mono() + 720.0)
    w.sim.witness.committed()


def _dearer_before_the_hold(w: Ended) -> None:
    w.comes_back()
    machine = w.sim.market.machines[RENTED]
    price = machine.price
    for each in (3 * price, price):
        machine.reprice(each)
        w.sim.witness.committed()
    _runs_on(w, "hold_reason = 'BY_PERSON', state = 'SFT'", 60.0)
    machine.away_limit_s = 3 * 3600.0
    w.sim.clock.suspend(2 * 3600.0)
    w.sim.witness.committed()


def _limit_overrun(w: Ended) -> None:
    _runs_on(w, "state = 'GGUF'", 6.2 * 3600.0)


def _reserve_spent(w: Ended) -> None:
    w.spoil("UPDATE stages SET done_at = NULL")
    _runs_on(w, "state = 'SFT'", 5.5 * 3600.0)


def _runs_on(w: Ended, job: str, seconds: float) -> None:
    """The machine is there again and runs for so long, with a job like this."""
    w.comes_back()
    w.sim.market.machines[RENTED].away_limit_s = 1e9
    w.sim.market.machines[RENTED].power_on()
    w.spoil(f"UPDATE jobs SET {job}")
    w.spoil("UPDATE leases SET state = 'LIVE'")
    w.sim.clock.run_until(w.sim.clock.mono() + 60.0)
    w.sim.witness.committed()
    w.sim.clock.run_until(w.sim.clock.mono() + seconds)
    w.sim.witness.committed()


def _kept_for_nothing(w: Ended) -> None:
    w.spoil("UPDATE jobs SET state = 'VERIFIED'")
    w.spoil("UPDATE leases SET state = 'LIVE'")
    w.spoil("DELETE FROM operations WHERE kind = 'destroy'")
    for _ in range(6):
        w.sim.witness.listed(set(), {})


def _machine_of_nobody(w: Ended) -> None:
    w.sim.market.machines[5000] = Machine(
        w.sim, 5000, "hp-install-job-nonce", OFFER, ready_s=0.0, away_limit_s=math.inf
    )
    w.sim.witness.at_the_end()


def _over_and_billing(w: Ended) -> None:
    w.comes_back()
    w.sim.witness.committed()


def _gone_and_billing(w: Ended) -> None:
    w.comes_back()
    w.sim.witness.at_the_end()


def _live_after_the_end(w: Ended) -> None:
    w.comes_back()
    w.spoil("UPDATE leases SET state = 'LIVE'")
    w.sim.witness.at_the_end()


def _label_sent_twice(w: Ended) -> None:
    w.sim.market.creates["hp-a"] = 1
    w.send("create", 0, label="hp-a")


def _backwards(w: Ended) -> None:
    w.spoil("UPDATE jobs SET state = 'VERIFIED'")
    w.sim.witness.committed()
    w.spoil("UPDATE jobs SET state = 'SFT'")
    w.sim.witness.committed()


def _backwards_by_a_retry_of_another_job(w: Ended) -> None:
    w.sim.person.retried.add("another")
    _backwards(w)


def _events_say_otherwise(w: Ended) -> None:
    w.spoil("UPDATE jobs SET attempt = 7")
    w.sim.witness.at_the_end()


def _too_cheap(w: Ended) -> None:
    w.spoil("UPDATE leases SET cost = 0, running_ms = 0, idle_ms = 0")
    w.sim.witness.at_the_end()


def _cost_falls_as_another_is_recounted(w: Ended) -> None:
    w.sim.witness.committed()
    w.spoil("UPDATE leases SET cost = cost - 1")
    w.once_more("events", kind="lease.recounted", lease_id=99)
    w.sim.witness.committed()


def _cost_falls(w: Ended) -> None:
    w.sim.witness.committed()
    w.spoil("UPDATE leases SET cost = cost - 1")
    w.sim.witness.committed()


def _overtaken_and_writes(w: Ended) -> None:
    w.spoil("UPDATE leader SET epoch = 99")
    context = Context()
    context.run(LIFE.set, w.sim.lives[0])
    context.run(w.sim.witness.committed)


def _overtaken(w: Ended) -> None:
    w.sim.lives.append(Life(2, OURS, dead=True, epoch=99))
    w.send("stop")


def _restored_and_goes_on(w: Ended) -> None:
    for _ in range(2):
        w.sim.witness.listed(set(), {})
    w.spoil("UPDATE jobs SET state = 'SFT'")
    w.spoil("DELETE FROM events WHERE id > 5")
    w.sim.witness.after_restore()
    w.sim.witness.leads()


def _failed_nowhere(w: Ended) -> None:
    w.spoil("UPDATE jobs SET hold_reason = 'STAGE_FAILED', hold_detail = 'no route to host'")
    w.sim.witness.committed()


def _key_in_a_file(w: Ended) -> None:
    (w.sim.settings.paths.models / "notes").write_text(CANARY)
    w.sim.witness.at_the_end()


def _nonce_on_two_machines(w: Ended) -> None:
    w.send("stage_start", nonce="n1")
    w.send("stage_start", RENTED + 1, nonce="n1")


def _two_nonces_of_a_stage(w: Ended) -> None:
    w.spoil("UPDATE stages SET nonce = 'n1' WHERE stage = 'SFT'")
    w.send("stage_start", nonce="n1")
    w.spoil("UPDATE stages SET nonce = 'n2' WHERE stage = 'SFT'")
    w.send("stage_start", nonce="n2")


def _stage_of_another_job(w: Ended) -> None:
    w.spoil("UPDATE stages SET nonce = 'n1', job_id = 'another' WHERE stage = 'SFT'")
    w.send("stage_start", nonce="n1")


def _training_of_another_job(w: Ended) -> None:
    path = "run/sft/adapter.safetensors"
    w.sim.witness.wire.brought(w.machines[RENTED], path, made("tiny", path))
    assert not w.sim.witness.violations
    w.sim.witness.wire.brought(w.machines[RENTED], path, made("other", path))


def _done_nowhere(w: Ended) -> None:
    w.sim.boxes.disks.clear()
    w.sim.witness.committed()


def _done_for_another_job(w: Ended) -> None:
    w.spoil("UPDATE stages SET job_id = 'another'")
    w.sim.witness.committed()


def _gone_too_soon(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LIVE', absent_count = 0")
    w.sim.witness.committed()
    w.sim.market.given.append(Given(w.sim.clock.boot(), True, frozenset()))
    w.spoil("UPDATE leases SET state = 'GONE', absent_count = 2")
    w.sim.witness.committed()


def _gone_and_shown(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LIVE', absent_count = 0")
    w.sim.witness.committed()
    w.comes_back()
    w.spoil("UPDATE leases SET state = 'GONE'")
    w.sim.witness.committed()


def _lost_too_soon(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LIVE', status = 'offline'")
    w.sim.witness.committed()
    w.spoil("UPDATE leases SET state = 'LOST'")
    w.sim.witness.committed()


def _absent_too_soon(w: Ended) -> None:
    w.sim.witness.committed()
    w.sim.market.given += [Given(w.sim.clock.boot(), True, frozenset())] * 9
    w.spoil("UPDATE operations SET state = 'ABSENT' WHERE kind = 'create'")
    w.sim.witness.committed()


def _absent_unseen(w: Ended) -> None:
    w.sim.witness.committed()
    w.sim.clock.run_until(w.sim.clock.mono() + 700.0)
    w.spoil("UPDATE operations SET state = 'ABSENT' WHERE kind = 'create'")
    w.sim.witness.committed()


def _refused_by_nobody(w: Ended) -> None:
    w.spoil("UPDATE operations SET state = 'REFUSED' WHERE kind = 'create'")
    w.sim.witness.committed()


def _missed_unseen(w: Ended) -> None:
    w.spoil("UPDATE leases SET state = 'LIVE', absent_count = 0")
    w.sim.witness.committed()
    w.sim.market.given.append(Given(w.sim.clock.boot(), False, frozenset()))
    w.sim.market.given.append(Given(w.sim.clock.boot(), True, frozenset({RENTED})))
    w.sim.market.given.append(Given(w.sim.clock.boot(), True, frozenset({RENTED})))
    w.spoil("UPDATE leases SET absent_count = 1")
    w.sim.witness.committed()


def _rents_for_a_cancelled_job(w: Ended) -> None:
    w.sim.person.cancelled[next(iter(w.sim.jobs))] = 0
    w.send("stage_start", nonce="n1")


def _cancelled_with_its_work(w: Ended) -> None:
    w.comes_back()
    w.spoil("UPDATE jobs SET state = 'CANCELLED'")
    w.sim.witness.committed()


def _cancelled_and_another_typed(w: Ended) -> None:
    w.sim.person.types("another", RENTED)
    _cancelled_with_its_work(w)


def _held_by_a_defect(w: Ended) -> None:
    w.spoil("UPDATE jobs SET hold_reason = 'INTERNAL', hold_detail = 'KeyError: 3'")
    w.sim.witness.committed()


def _stands_still(w: Ended) -> None:
    w.spoil("UPDATE jobs SET state = 'SFT'")
    w.sim.follow(w.sim._settle)


def _under_another_name(w: Ended) -> None:
    w.spoil("UPDATE jobs SET name = 'other'")
    w.sim.witness.at_the_end()


def _forgotten(w: Ended) -> None:
    w.spoil("UPDATE jobs SET id = 'another'")
    w.sim.witness.at_the_end()


FIRES: tuple[tuple[str, Callable[[Ended], None]], ...] = (
    ("I1", _destroy_without_a_model),
    ("I1", _destroy_by_another_set),
    ("I1", _typed_once_destroyed_twice),
    ("I1", _typed_long_ago),
    ("I1", _typed_for_another_job),
    ("I1", _receipt_of_another_job),
    ("I2", _receipt_of_other_bytes),
    ("I2", _receipt_before_the_sync),
    ("I2", _downloaded_and_not_here),
    ("I3", _two_machines),
    ("I3", _machine_and_open_create),
    ("I3", _lost_runs_on),
    ("I4", _machine_of_nobody),
    ("I5", _over_and_billing),
    ("I5", _gone_and_billing),
    ("I5", _live_after_the_end),
    ("I6", lambda w: w.send("create", 0, label="hp-never-written")),
    ("I7", _label_sent_twice),
    ("I8", _backwards),
    ("I8", _backwards_by_a_retry_of_another_job),
    ("I9", _events_say_otherwise),
    ("I10", _too_cheap),
    ("I10", _cost_falls),
    ("I10", _cost_falls_as_another_is_recounted),
    ("I11", _start_left_queued),
    ("I11", _hold_without_an_end),
    ("I11", _limit_overrun),
    ("I11", _reserve_spent),
    ("I11", _hold_spent_before_the_key_changed),
    ("I11", _dearer_before_the_hold),
    ("I12", _overtaken),
    ("I12", _overtaken_and_writes),
    ("I12", _restored_and_goes_on),
    ("I13", _key_in_a_file),
    ("I14", _nonce_on_two_machines),
    ("I14", _two_nonces_of_a_stage),
    ("I14", _stage_of_another_job),
    ("I14", _training_of_another_job),
    ("I14", lambda w: w.sim.witness.wire.written(w.machines[RENTED], "another")),
    ("I15", _done_nowhere),
    ("I15", _done_for_another_job),
    ("I15", _failed_nowhere),
    ("I16", _gone_too_soon),
    ("I16", _gone_and_shown),
    ("I16", _lost_too_soon),
    ("I16", _absent_too_soon),
    ("I16", _absent_unseen),
    ("I16", _refused_by_nobody),
    ("I17", _missed_unseen),
    ("I18", lambda w: w.send("stop", FOREIGN[0])),
    ("I18", lambda w: w.send("stop")),
    ("I19", _rents_for_a_cancelled_job),
    ("I19", _cancelled_with_its_work),
    ("I19", _cancelled_and_another_typed),
    ("I20", _torn_file),
    ("I22", _held_by_a_defect),
    ("I23", _stands_still),
    ("I23", _kept_for_nothing),
    ("I23", _forgotten),
    ("I23", _under_another_name),
)


def _hold_said_again(w: Ended) -> None:
    _runs_on(w, "hold_reason = 'BY_PERSON', hold_by = 'me', state = 'SFT'", 3000.0)
    w.once_more("events", job_id=next(iter(w.sim.jobs)), kind="job.held", by="me")
    w.sim.witness.committed()
    w.sim.clock.run_until(w.sim.clock.mono() + 3000.0)
    w.sim.witness.committed()


def _silent_since_its_first_start(w: Ended) -> None:
    w.sim.market.machines[RENTED].looked_at = -1.0
    _reserve_spent(w)


def _clock_set_ahead(w: Ended) -> None:
    w.sim.clock.step_wall(40.0)
    _reserve_spent(w)


def _ran_while_it_was_written_off(w: Ended) -> None:
    w.spoil("UPDATE jobs SET state = 'GGUF'")
    for state in ("LIVE", "WRITTEN_OFF"):
        w.spoil(f"UPDATE leases SET state = '{state}'")
        w.sim.witness.committed()
    w.comes_back()
    w.sim.market.machines[RENTED].away_limit_s = 1e9
    w.sim.clock.run_until(w.sim.clock.mono() + 6.2 * 3600.0)
    w.spoil("UPDATE leases SET state = 'LIVE'")
    w.sim.witness.committed()


def _dearer_than_offered_and_slept_over(w: Ended) -> None:
    w.comes_back()
    price = w.sim.market.machines[RENTED].price
    w.sim.market.machines[RENTED].reprice(3 * price)
    _runs_on(w, "hold_reason = 'BY_PERSON', state = 'SFT'", 60.0)
    w.sim.market.machines[RENTED].away_limit_s = 3600.0
    w.sim.clock.suspend(2 * 3600.0)
    w.sim.market.machines[RENTED].reprice(price)
    w.sim.witness.committed()


def _under_anothers_key(w: Ended) -> None:
    w.sim.market.account_of_key = ANOTHERS
    _limit_overrun(w)


def _held_under_anothers_key(w: Ended) -> None:
    w.sim.market.account_of_key = ANOTHERS
    _hold_without_an_end(w)


FORGIVEN = (
    _hold_said_again,
    _silent_since_its_first_start,
    _clock_set_ahead,
    _ran_while_it_was_written_off,
    _dearer_than_offered_and_slept_over,
    _under_anothers_key,
    _held_under_anothers_key,
)


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    sim = Simulation(1, dpo=False)
    with sim.open():
        sim.follow(sim._main)
        for life in sim.lives:
            life.dead = True
        for daemon in sim.daemons.values():
            daemon.database.close()
        world = Ended(sim)
        yield world
        world.restore()


@pytest.fixture
def world(ended: Ended) -> Ended:
    ended.restore()
    return ended


def test_a_good_run_offends_nobody(world: Ended) -> None:
    """Looked at in every way, the run that the table spoils hurts no invariant."""
    world.sim.witness.committed()
    world.sim.witness.after_death()
    world.spoil("UPDATE operations SET state = 'SENT' WHERE kind = 'destroy'")
    world.send("destroy")
    world.sim.witness.at_the_end()

    assert world.sim.witness.violations == []


@pytest.mark.parametrize("spoil", FORGIVEN, ids=lambda spoil: spoil.__name__)
def test_what_nobody_can_know_is_forgiven(spoil: Callable[[Ended], None], world: Ended) -> None:
    """The same with a little less reason is accused, in the table above."""
    spoil(world)

    assert "I11" not in {violation.invariant for violation in world.sim.witness.violations}


@pytest.mark.parametrize(("invariant", "spoil"), FIRES, ids=lambda value: getattr(value, "__name__", value))
def test_it_fires(invariant: str, spoil: Callable[[Ended], None], world: Ended) -> None:
    """What was made wrong is seen, under the invariant that it violates."""
    spoil(world)

    assert invariant in {violation.invariant for violation in world.sim.witness.violations}


def test_every_check_is_in_the_table() -> None:
    """No invariant is claimed for this tier whose check was not seen to fire; I24 fires in test_sweep.py."""
    assert {invariant for invariant, _ in FIRES} | {"I24"} == set(CHECKED)
