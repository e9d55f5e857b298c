"""What a person can ask for: each command is one transaction on the job's row, then the driver is told.

Commands never call the market to change anything: they store a spec, a hold, a wish or a typed token, and the driver
acts on it. Every refusal names the next command to type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from daemon.control import adoption, quotes, snapshot, submission
from daemon.control.attempts import begin_again
from daemon.control.byhand import ByHand
from daemon.control.mirror import Mirror, gone
from daemon.control.world import World
from daemon.domain import ids
from daemon.domain.holds import HOLDS, HoldReason
from daemon.domain.lifecycle import EDGES, JobState, Trigger
from daemon.domain.money import decimal_string
from daemon.domain.records import Job, Kind, Lease, LeaseState, Wish
from daemon.domain.spec import JobSpec
from daemon.errors import NoSuchJob, Refused, WorkstationUnfit
from daemon.rows.findings import findings
from daemon.store import artifacts, jobs, leases, operations, stages
from daemon.store.database import Database

RETRY_STATES = frozenset(edge.source for edge in EDGES if edge.trigger is Trigger.RETRY)


@dataclass
class Commands:
    """The verbs of jobctl, as the API calls them. Raises HomeportError with a hint; nothing is changed then."""

    world: World
    changed: Callable[[str], None]

    def __post_init__(self) -> None:
        self._by_hand = ByHand(self.world)

    @property
    def _database(self) -> Database:
        return self.world.database

    # -- before anything is spent -------------------------------------------------------------------------------

    async def submit(self, text: str, source: str, folder: str, request_id: str) -> dict[str, Any]:
        """Check everything that can be checked here, then store the job. The same request twice is one job."""
        with self._database.read() as c:
            known = jobs.by_request(c, request_id)
        if known is not None:
            self.changed(known.id)  # stored, and the answer lost before its driver was told
            return {"job": known.id, "name": known.name, "created": False, "plan": None}
        asked = await submission.read(self.world, text, source, Path(folder))
        estimated = quotes.expected(asked.spec, asked.folder, asked.rows)
        objections = await quotes.objections(self.world, asked.spec, asked.folder, estimated)
        if objections:
            raise WorkstationUnfit("\n".join(o.problem for o in objections), hint="; ".join(o.mend for o in objections))
        revision = await asked.revision(self.world.settings)
        job = self._store(asked.spec, asked.columns(request_id, revision))
        self.changed(job)
        return {"job": job, "name": asked.spec.name, "created": True, "plan": None}

    async def adopt(self, instance: int, text: str, source: str, folder: str, by: str) -> dict[str, Any]:
        """Take a machine back whose job this database does not know; `text` is the job file it was submitted with."""
        asked = await submission.read(self.world, text, source, Path(folder))
        revision = await asked.revision(self.world.settings)
        lease, secret, proven, theirs, prepared = await adoption.look(self.world, instance)
        spec, row = asked.spec, asked.columns(f"adopt-{lease.label}", revision)
        with self._database.write() as c:
            _refuse_taken(c, spec.name)
            job = adoption.store(c, self.world, row, spec, lease, secret, proven, theirs, prepared, by)
        self.changed(job)
        message = f"{spec.name} ({job}) has instance {instance} again and is held; go on with: jobctl resume {job}"
        return {"job": job, "message": message}

    def _store(self, spec: JobSpec, row: dict[str, Any]) -> str:
        now = self.world.clock.wall_ms()
        with self._database.write() as c:
            _refuse_taken(c, spec.name)
            taken = jobs.ids(c)
            job = next(i for i in iter(ids.job_id, "") if i not in taken)
            jobs.add(c, now, "person", id=job, **row)
            run = [name for name, block in (("SFT", spec.sft), ("DPO", spec.dpo)) if block is not None] + ["GGUF"]
            stages.begin_attempt(c, job, 1, spec.sha256, run, now, keep=[], fresh=True)
        return job

    async def plan(self, text: str, source: str, folder: str) -> dict[str, Any]:
        """What submit would do and cost. Nothing is stored, nothing is spent."""
        asked = await submission.read(self.world, text, source, Path(folder))
        notes = [finding.text for finding in findings(asked.files)]
        return await quotes.plan(self.world, asked.spec, asked.folder, asked.rows, notes)

    async def offers(self, filters: dict[str, Any]) -> dict[str, Any]:
        return await quotes.offers(self.world, filters)

    # -- steering -------------------------------------------------------------------------------------------------

    async def hold(self, job: str, by: str) -> dict[str, Any]:
        def act(c: Connection, row: Job) -> None:
            _refuse_if_letting_go(c, row)
            artifacts.void_tokens(c, row.id, self._now)
            jobs.hold(c, row, HoldReason.BY_PERSON, "held by you", self._now, self._database.epoch, by=by)

        return self._change(job, act)

    async def resume(self, job: str, by: str) -> dict[str, Any]:
        """End a hold. After GONE and RESTORED the next machine is rented anew."""

        def act(c: Connection, row: Job) -> None:
            _refuse_if_letting_go(c, row)
            if row.hold_reason is None:
                raise Refused(f"job {row.id} is not held", hint=f"jobctl show {row.id}")
            trains = any(run.done_at is None and run.stage != JobState.GGUF for run in stages.of_attempt(c, row))
            was_asked = leases.live(c, row.id) is None or snapshot.rescued(
                c, row
            )  # else the training may be over there
            if row.hold_reason is HoldReason.BUDGET and trains and was_asked:
                raise Refused(f"limits.cost of job {row.id} is spent", hint=f"jobctl cancel {row.id}")
            artifacts.void_tokens(c, row.id, self._now)
            # What a restored database calls not begun may have begun on a machine that it never knew: other nonces.
            presumed = any(op.kind is Kind.STAGE_START and op.nonce is None for op in operations.of_job(c, row.id))
            restored = row.hold_reason is HoldReason.RESTORED or presumed
            anew = row.hold_reason is HoldReason.GONE or (restored and row.state is JobState.QUEUED)
            if anew and row.wish is None and leases.live(c, row.id) is None:  # it may have come back
                self._again(c, row, by, fresh=False)
                return
            jobs.release(c, row, self._now, self._database.epoch, by=by)

        return self._change(job, act)

    async def retry(self, job: str, by: str, stage: str | None) -> dict[str, Any]:
        """A new attempt: from `stage` afresh, or (None) the stage that failed, from its newest checkpoint."""

        def act(c: Connection, row: Job) -> None:
            _refuse_if_letting_go(c, row)
            if row.state not in RETRY_STATES:
                raise Refused(f"job {row.id} is {row.state}: nothing to retry", hint=f"jobctl show {row.id}")
            runs = [run.stage for run in stages.of_attempt(c, row)]
            if stage is not None and stage.upper() not in runs:
                raise Refused(f"{stage!r} is not a stage of job {row.id}", hint=f"--from {'|'.join(runs).lower()}")
            self._again(c, row, by, fresh=stage is not None, redo=stage.upper() if stage else None)

        return self._change(job, act)

    def _again(self, c: Connection, row: Job, by: str, *, fresh: bool, redo: str | None = None) -> None:
        """A new attempt. Finished stages before `redo` stay: on the machine, or, when that is gone, from the mirror."""
        runs = stages.of_attempt(c, row)
        names = [run.stage for run in runs]
        upto = names.index(redo) if redo else len(names)
        if leases.live(c, row.id):
            kept = [run for run in runs[:upto] if run.done_json]
        else:
            mirror = Mirror(self.world.mirror_folder(row.id))
            if (upto or not fresh) and (why := gone(c, row.id, mirror)):
                raise Refused(f"{why}, then again", hint=f"jobctl show {row.id}")
            kept = mirror.kept(runs[:upto])
        if redo is None and len(kept) == len(runs):
            kept = kept[:-1]  # everything is done: what can be repeated is the conversion
        changes = begin_again(c, row, runs, self._now, keep=kept, fresh=fresh, redo=redo)
        now, epoch = self._now, self._database.epoch
        if row.state is JobState.QUEUED:
            jobs.release(c, row, now, epoch, by=by)
            jobs.change(c, jobs.get(c, row.id), now, epoch, **changes)
        else:
            jobs.move(c, row, JobState.QUEUED, now, epoch, by=by, spoken_at=now, wish=None, **changes)

    async def cancel(self, job: str, by: str, discard: bool, confirm: int | None = None) -> dict[str, Any]:
        """End the job. What is not verified here is saved first and HELD, unless `discard` with the typed id."""
        if discard:
            return await self._give_up(job, by, Wish.DISCARD, confirm)

        def act(c: Connection, row: Job) -> None:
            _refuse_if_terminal(row)
            artifacts.void_tokens(c, row.id, self._now)  # what an id was typed for before is saved now
            jobs.wish(c, row, Wish.CANCEL, self._now, self._database.epoch, by=by)

        return self._change(job, act)

    async def abandon_terms(self, job: str) -> dict[str, Any]:
        """What would be lost, in words, and the id to type."""
        with self._database.read() as c:
            row = jobs.get(c, job)
            _refuse_if_terminal(row)
            rented = leases.of_job(c, job)
            held = _held(c, row, self._now)
            done = [run.stage for run in stages.of_attempt(c, row) if run.done_at]
            unanswered = [op for op in operations.open_ones(c, job) if op.kind is Kind.CREATE]
        lost = [f"the machine {lease.instance_id} ({lease.gpu_name}) and everything on it" for lease in held]
        if unanswered:
            lost.append("a machine that was asked for and not answered: what comes of it is returned, unused")
        spent = sum(lease.cost_at(self._now) for lease in rented)
        return {
            "job": job,
            "name": row.name,
            "state": row.state.value,
            "instance": held[0].instance_id if held else None,
            "spent": {"amount": decimal_string(spent), "currency": "USD"},
            "finished_stages": done,
            "lost": lost or ["nothing: no machine is rented"],
        }

    async def abandon(self, job: str, by: str, confirm: int | None) -> dict[str, Any]:
        return await self._give_up(job, by, Wish.ABANDON, confirm)

    async def _give_up(self, job: str, by: str, wish: Wish, confirm: int | None) -> dict[str, Any]:
        """The typed instance id becomes a token: single use, this attempt, void after 15 minutes or another word."""
        life_ms = round(self.world.settings.timing.token_life * 1000)

        def act(c: Connection, row: Job) -> None:
            _refuse_if_terminal(row)
            risky = [lease for lease in _held(c, row, self._now) if _work_started(c, lease)]
            if risky and confirm not in [lease.instance_id for lease in risky]:
                raise Refused(
                    f"this destroys instance {risky[0].instance_id} with everything on it",
                    hint=f"type its id: jobctl {'abandon' if wish is Wish.ABANDON else 'cancel --discard'} {row.id} "
                    f"--confirm {risky[0].instance_id}",
                )
            if confirm is not None and risky:
                artifacts.add_token(c, row, confirm, by, self._now, self._now + life_ms)
            jobs.wish(c, row, wish, self._now, self._database.epoch, by=by)

        return self._change(job, act)

    async def accept(self, job: str, by: str, level: str | None = None, confirm: str | None = None) -> dict[str, Any]:
        """Yes to a verified model under `destroy: ask`; with `level`, that nothing above it can be verified here.

        `confirm` is the job's name, typed. Only a level that could not run is forgiven, never one that failed.
        """
        if level is None:
            with self._database.read() as c:
                row = jobs.get(c, job)
            if row.hold_reason is not HoldReason.ASK_DESTROY:
                raise Refused(f"job {job} does not wait to be accepted", hint=f"jobctl show {job}")
            return await self.resume(job, by)

        def act(c: Connection, row: Job) -> None:
            if row.hold_reason is not HoldReason.NOT_VERIFIED:
                raise Refused(
                    f"job {row.id} does not wait for a level that could not run: a level that failed is not accepted",
                    hint=f"jobctl show {row.id}",
                )
            stopped = (row.hold_detail or "")[:2]
            if stopped <= level:
                below = "--level L3" if stopped > "L3" else f"jobctl resume {row.id}   less than L3 is never accepted"
                raise Refused(f"{stopped} could not run, so {level} is not reached", hint=below)
            if confirm != row.name:
                raise Refused(
                    f"the machine is returned though {row.hold_detail}: whether the model works is then not known",
                    hint=f"type the job's name: jobctl accept {row.id} --level {level} --confirm {row.name}",
                )
            artifacts.accept_level(c, row, level, by, self._now)
            jobs.release(c, row, self._now, self._database.epoch, by=by)

        return self._change(job, act)

    async def write_off(self, instance: int, by: str, confirm: int | None) -> dict[str, Any]:
        """Stop caring for an instance we cannot end; it is watched for ever."""
        with self._database.write() as c:
            lease = leases.by_instance(c, instance)
            if lease is None or not lease.is_held:
                raise NoSuchJob(f"no lease of instance {instance}", hint="jobctl leases")
            if confirm != instance:
                raise Refused(
                    f"instance {instance} may go on billing", hint=f"jobctl write-off {instance} --confirm {instance}"
                )
            leases.set_state(c, lease, LeaseState.WRITTEN_OFF, self._now, why="written off", by=by)
        if lease.job_id:
            self.changed(lease.job_id)
        return {"job": lease.job_id, "message": f"instance {instance} is written off; it is watched for ever"}

    # -- files by hand ----------------------------------------------------------------------------------------------

    async def pull(self, job: str, checkpoint: str, to: str) -> dict[str, Any]:
        return await self._by_hand.pull(job, checkpoint, to)

    async def fetch(self, instance: int, pattern: str, to: str, host_key: str | None) -> dict[str, Any]:
        return await self._by_hand.fetch(instance, pattern, to, host_key)

    async def transfer(self, number: int) -> dict[str, Any]:
        return self._by_hand.view(number)

    async def doctor(self) -> dict[str, Any]:
        return await quotes.checks(self.world)

    # -- one transaction ------------------------------------------------------------------------------------------

    @property
    def _now(self) -> int:
        return self.world.clock.wall_ms()

    def _change(self, job: str, act: Callable[[Connection, Job], None]) -> dict[str, Any]:
        try:
            with self._database.write() as c:
                act(c, jobs.get(c, job))
                row = jobs.get(c, job)
        except IntegrityError as error:
            raise Refused(f"not possible now: {error.orig}", hint=f"jobctl show {job}") from error
        self.changed(job)
        return {"job": job, "message": _what_now(row)}


def _what_now(row: Job) -> str:
    if row.wish:
        return f"{row.name}: {row.wish.value.lower()} asked; follow it with jobctl show {row.id}"
    if row.hold_reason:
        return f"{row.name} is held: {HOLDS[row.hold_reason].meaning}"
    return f"{row.name} goes on in {row.state}, attempt {row.attempt}"


def _held(c: Connection, row: Job, now_ms: int) -> list[Lease]:
    """What may bill of the job. First the one whose id has to be typed next: work on it, not typed yet, its machine."""

    def key(lease: Lease) -> tuple[bool, ...]:
        typed = artifacts.usable_token(c, row, lease.instance_id, now_ms) is not None
        return not _work_started(c, lease), typed, lease.state is not LeaseState.LIVE

    return sorted((lease for lease in leases.of_job(c, row.id) if lease.is_held), key=key)


def _work_started(c: Connection, lease: Lease) -> bool:
    return any(op.may_have_begun_work for op in operations.of_lease(c, lease.id))


def _refuse_taken(c: Connection, name: str) -> None:
    if name in jobs.names(c):
        raise Refused(f"an unfinished job is already called {name}", hint=f"jobctl show {name}")


def _refuse_if_terminal(row: Job) -> None:
    if row.state.is_terminal:
        raise Refused(f"job {row.id} is already {row.state}", hint=f"jobctl show {row.id}")


def _refuse_if_letting_go(c: Connection, row: Job) -> None:
    """A destroy on its way is followed to its end; a LOST machine's stands in nobody's way before the job ends."""
    _refuse_if_terminal(row)
    for lease in leases.of_job(c, row.id):
        awaited = lease.state is LeaseState.LIVE or (lease.is_held and row.is_ending and leases.live(c, row.id) is None)
        for op in operations.of_lease(c, lease.id):
            if awaited and op.kind is Kind.DESTROY and op.state.may_have_happened:
                hint = f"jobctl wait {row.id}" if row.hold_reason is None else f"jobctl abandon {row.id}"
                raise Refused(f"the destroy of instance {lease.instance_id} is on its way", hint=hint)
