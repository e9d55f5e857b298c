"""A machine whose job the database does not know: taken back only when machine, market and job file say one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from desk import SPEC, Desk
from scripted_market import instance
from store import NOW

from daemon.box import challenge
from daemon.box.box import Proven
from daemon.control import jobfile
from daemon.control.permits import NoPermit
from daemon.domain.holds import HoldReason
from daemon.domain.market import Instance
from daemon.domain.records import LeaseState
from daemon.domain.spec import from_canonical
from daemon.errors import BoxError, NoSuchJob, Refused
from daemon.store import jobs, leases, stages
from remote_payload.contract import JobFile, Prepared

SECRET = "s" * 64
PROVEN = Proven("ssh-ed25519 AAAA", "/workspace/homeport", "/venv/main/bin/python")
PREPARED = Prepared(ok=True, line="T: 40 SFT, 0 DPO", sft_rows=40, dpo_rows=0, steps={"SFT": 3})


@dataclass
class Machine:
    """What the machine says of itself."""

    its_job: JobFile | None
    its_prepared: Prepared | None = PREPARED
    closed: bool = False

    async def prove(self) -> Proven:
        return PROVEN

    async def job(self) -> JobFile | None:
        return self.its_job

    async def prepared(self) -> Prepared | None:
        return self.its_prepared

    async def aclose(self) -> None:
        self.closed = True


@dataclass
class Orphan:
    """`desk`: a database without the job that `machine`, instance 77, works on."""

    desk: Desk
    machine: Machine
    job: str

    def shown(self, **changes: Any) -> None:
        """The market's word about the instance."""
        seen: Instance = instance(77, self.label)
        self.desk.market.instances = [replace(seen, env={challenge.ENV_NAME: SECRET}, **changes)]

    @property
    def label(self) -> str:
        with self.desk.database.read() as c:
            found = leases.by_instance(c, 77)
        return found.label if found else ""

    async def adopt(self, text: str = SPEC) -> dict[str, Any]:
        return await self.desk.commands.adopt(77, text, "job.yaml", str(self.desk.folder), "me")


@pytest.fixture
async def orphan(tmp_path: Path) -> Iterator[Orphan]:  # type: ignore[misc]
    before = Desk(tmp_path / "before")
    job = await before.submit()
    lease = before.write(lambda c: leases.add(c, None, 77, f"hp-inst-{job.id}-n", LeaseState.LIVE, NOW, job=job.id))
    with before.database.read() as c:
        runs, row = tuple(stages.of_attempt(c, job)), leases.get(c, lease)
    theirs = jobfile.build(job, from_canonical(job.spec_json), row, runs, before.world.settings)
    before.database.close()

    after = Desk(tmp_path / "after")
    machine = Machine(theirs)
    after.world.connect = lambda address, count: machine  # type: ignore[assignment,return-value]
    after.write(lambda c: leases.add(c, None, 77, f"hp-inst-{job.id}-n", LeaseState.LIVE, NOW))
    found = Orphan(after, machine, job.id)
    found.shown()
    yield found
    after.database.close()


async def test_a_job_is_taken_back_with_its_nonces(orphan: Orphan) -> None:
    """Held for its person; its machine is not unused any more, since nobody knows what ran there."""
    answer = await orphan.adopt()

    job = orphan.desk.job(orphan.job)
    [lease] = orphan.desk.leases(orphan.job)
    with orphan.desk.database.read() as c:
        nonces = [run.nonce for run in stages.of_attempt(c, job)]
    assert answer["job"] == job.id and f"jobctl resume {job.id}" in answer["message"]
    assert (job.hold_reason, job.attempt, orphan.desk.told) == (HoldReason.RESTORED, 1, [job.id])
    assert orphan.machine.its_job is not None
    assert nonces == [plan.nonce for plan in orphan.machine.its_job.stages]
    assert (lease.challenge, lease.host_key, lease.provisioned) == (SECRET, PROVEN.host_key, 1)
    assert orphan.machine.closed
    with pytest.raises(NoPermit):
        await orphan.desk.world.operator.destroy(job, lease, "nothing was started on it")
    with pytest.raises(Refused, match="is that of job"):
        await orphan.adopt(SPEC.replace("bot", "other"))


async def test_a_machine_that_was_not_ready_is_made_ready_again(orphan: Orphan) -> None:
    """Its preparing was refused, or had not ended."""
    orphan.machine.its_prepared = replace(PREPARED, ok=False)

    await orphan.adopt()

    assert orphan.desk.job(orphan.job).prepared_json is None
    assert orphan.desk.leases(orphan.job)[0].provisioned is None


def no_job(orphan: Orphan) -> None:
    orphan.machine.its_job = None


def changed(**changes: Any) -> Callable[[Orphan], None]:
    def change(orphan: Orphan) -> None:
        assert orphan.machine.its_job is not None
        orphan.machine.its_job = replace(orphan.machine.its_job, **changes)

    return change


def another_nonce(orphan: Orphan) -> None:
    assert orphan.machine.its_job is not None
    first, *others = orphan.machine.its_job.stages
    changed(stages=[replace(first, nonce="../escape"), *others])(orphan)


def only_gguf(orphan: Orphan) -> None:
    assert orphan.machine.its_job is not None
    changed(stages=orphan.machine.its_job.stages[1:])(orphan)


def not_shown(orphan: Orphan) -> None:
    orphan.desk.market.instances = []


def without_secret(orphan: Orphan) -> None:
    orphan.desk.market.instances = [instance(77, orphan.label)]


def stopped(orphan: Orphan) -> None:
    orphan.shown(actual_status="exited", cur_state="stopped")


def gone(orphan: Orphan) -> None:
    orphan.desk.write(
        lambda c: leases.set_state(c, leases.by_instance(c, 77), LeaseState.GONE, NOW, why="vanished")  # type: ignore[arg-type]
    )


REFUSED: list[tuple[Callable[[Orphan], None], str, type[Exception], str]] = [
    (no_job, SPEC, Refused, "nothing was begun on instance 77"),
    (changed(job="zzzzzz"), SPEC, BoxError, "no job.json of job"),
    (changed(attempt=0), SPEC, BoxError, "no job.json of job"),
    (another_nonce, SPEC, BoxError, "no job.json of job"),
    (changed(batch_size=8), SPEC, Refused, "batch_size: there 8, here 32"),
    (only_gguf, SPEC, Refused, r"stages: there \['GGUF'\], here \['SFT', 'GGUF'\]"),
    (lambda orphan: None, SPEC.replace("max_steps: 3", "max_steps: 4"), Refused, "works on another job file"),
    (not_shown, SPEC, Refused, "cannot be asked: it is not listed"),
    (stopped, SPEC, Refused, "cannot be asked: it is exited"),
    (without_secret, SPEC, Refused, "does not say what it proves itself with"),
    (gone, SPEC, NoSuchJob, "no machine 77"),
]


@pytest.mark.parametrize(("deed", "text", "error", "says"), REFUSED, ids=[row[3][:40] for row in REFUSED])
async def test_what_does_not_fit_together_is_refused(
    orphan: Orphan, deed: Callable[[Orphan], None], text: str, error: type[Exception], says: str
) -> None:
    """And stores nothing: neither a job, nor whose the machine is."""
    deed(orphan)

    with pytest.raises(error, match=says):
        await orphan.adopt(text)

    with orphan.desk.database.read() as c:
        assert jobs.ids(c) == set()
        found = leases.by_instance(c, 77)
    assert found is not None and found.job_id is None


async def test_a_name_that_is_taken(orphan: Orphan) -> None:
    await orphan.desk.submit(request="r9")

    with pytest.raises(Refused, match="already called bot"):
        await orphan.adopt()
