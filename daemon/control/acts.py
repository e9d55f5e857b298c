"""What each action of the plan does, and what of it is written down.

One method an action. Everything it learns it records before it returns, so a `kill -9` between any two lines ends in
the same place. Errors are not handled here but by the driver, once for all actions.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import structlog
from sqlalchemy import Connection

from daemon.artifacts.folder import set_aside
from daemon.artifacts.receipt import Receipt
from daemon.box.keys import own_key
from daemon.box.lines import clean_line
from daemon.box.upload import Upload
from daemon.control import quotes, reporters, snapshot
from daemon.control.attempts import begin_again
from daemon.control.bell import PAUSE_S, Bell
from daemon.control.homecoming import Homecoming
from daemon.control.link import Link
from daemon.control.mirroring import Mirroring
from daemon.control.provision import DataRefused, IntegrationRefused, provision
from daemon.control.watch import calling, look
from daemon.control.world import World
from daemon.domain import actions, ids
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState, Trigger
from daemon.domain.machine import Facts, fire
from daemon.domain.records import Kind, Lease, LeaseState, OpState, StageRun
from daemon.domain.snapshot import Snapshot
from daemon.domain.spec import JobSpec
from daemon.errors import (
    AccessDenied,
    BoxError,
    CredentialsRefused,
    HostKeyChanged,
    MarketError,
    NoCredit,
    OfferGone,
    RemoteFailed,
)
from daemon.store import artifacts, downloads, events, jobs, leases, machines, operations, reports, stages
from remote_payload.contract import dump

log = structlog.get_logger()
DAY_MS = 86_400_000
STOP_LOOKS = 60  # a second apart, before the plan is asked again
LOOK_S = 2.0  # at least, between two looks: each starts a process on the box
START = {"SFT": Trigger.START_SFT, "DPO": Trigger.START_DPO, "GGUF": Trigger.START_GGUF}


@dataclass
class Acts:
    """The actions of one job."""

    world: World
    job_id: str
    spec: JobSpec
    rows: dict[str, int]
    memory: snapshot.Memory
    link: Link
    bell: Bell
    mirroring: Mirroring
    _telling: asyncio.Future[None] | None = None

    async def do(self, s: Snapshot, action: actions.Action) -> None:
        await self.TABLE[type(action)](self, s, action)

    async def _wait(self, s: Snapshot, action: actions.Wait) -> None:
        await self.bell.wait(PAUSE_S)

    async def _rent(self, s: Snapshot, action: actions.Rent) -> None:
        """One offer, after a trusted listing that shows no machine of this job we do not know."""
        w = self.world
        listing = await w.operator.market.listing()
        if not listing.trusted:
            await w.operator.market.account()  # raises what a person has to mend, such as a refused key
            await self.bell.wait(PAUSE_S)
            return
        with w.database.read() as c:
            labels = {op.label for op in operations.of_job(c, self.job_id) if op.label}
            known = {lease.instance_id for lease in leases.of_job(c, self.job_id) if lease.is_held}
            known |= leases.written_off(c)
        ours = [i for i in listing.instances if ids.label_job(i.label) == self.job_id and i.id not in known]
        if any(i.label in labels for i in ours):
            await self.bell.wait(PAUSE_S)  # reconcile adopts it
            return
        if ours:  # rented for this job by a daemon whose database is not this one
            self.hold(s, HoldReason.RESTORED, f"instance {ours[0].id} is this job's, but not in this database")
            return
        ranking, disk_gb = await quotes.ranked(w, self.spec, Path(s.job.spec_dir), self.rows, listing.credit)
        for offer in ranking.chosen[:3]:
            try:
                await w.operator.rent(s.job, offer, disk_gb, self.spec.limits.hold)
                self.memory.nothing_fits_since_ms = None
                return
            except OfferGone:
                continue  # a definite refusal: only then the next one
            except NoCredit as error:
                self.hold(s, HoldReason.NO_CREDIT, str(error))
                return
        if self.memory.nothing_fits_since_ms is None:
            self.memory.nothing_fits_since_ms = w.clock.wall_ms()
            reasons = "; ".join(sorted({reason for _, reason in ranking.rejected})[:3])
            with w.database.write() as c:
                events.add(c, "market.nothing_fits", w.clock.wall_ms(), job=self.job_id, reasons=reasons)
        self.memory.asked_market_ms = w.clock.wall_ms()

    async def _prove(self, s: Snapshot, action: actions.Prove) -> None:
        if self.link.failures == 0:
            await self.attach_key(s)
        proven = await (await self.link.to(action.lease)).prove()
        with self.world.database.write() as c:
            leases.change(c, action.lease.id, host_key=proven.host_key, root=proven.root, python=proven.python)
            events.add(c, "box.proven", self.world.clock.wall_ms(), job=self.job_id, lease=action.lease.id)

    async def _provision(self, s: Snapshot, action: actions.Provision) -> None:
        lease = action.lease
        try:
            box = await self.link.to(lease)
            mirrored = [] if s.work_started(lease) else await asyncio.to_thread(self._mirrored, s)
            async with calling(box):
                settings = self.world.settings
                prepared, python = await provision(box, s.job, self.spec, lease, s.stages, settings, mirrored)
        except IntegrationRefused as error:
            self.hold(s, HoldReason.INTEGRATION, str(error))
            return
        except DataRefused as error:
            self.hold(s, HoldReason.DATA, str(error))
            return
        except RemoteFailed as error:
            await self._give_back(s, lease, f"{error} {clean_line(error.output[-500:])}".strip())
            return
        with self.world.database.write() as c:
            jobs.change(c, s.job, self.world.clock.wall_ms(), self.world.database.epoch, prepared_json=dump(prepared))
            leases.change(c, lease.id, provisioned=s.job.attempt, python=python)
            events.add(
                c,
                "box.prepared",
                self.world.clock.wall_ms(),
                job=self.job_id,
                lease=lease.id,
                line=prepared.line,
                steps=prepared.steps,
                kept=prepared.kept,
            )

    def _mirrored(self, s: Snapshot) -> list[Upload]:
        """What an earlier machine of the job made, as far as it is here."""
        with self.world.database.read() as c:
            earlier = stages.lineage(c, self.job_id, s.stage.stage) if s.stage is not None else []
        return list(self.mirroring.mirror.uploads(s.stages, earlier))

    async def _give_back(self, s: Snapshot, lease: Lease, why: str) -> None:
        """This machine is no good: remembered, and returned if nothing was started on it."""
        with self.world.database.write() as c:
            if lease.machine_id is not None:
                machines.add_bad(c, lease.machine_id, why, self.world.clock.wall_ms())
            events.add(c, "box.unfit", self.world.clock.wall_ms(), job=self.job_id, lease=lease.id, why=why[:500])
        if s.work_started(lease):
            self.hold(s, HoldReason.INTERNAL, why)
        else:
            await self.world.operator.destroy(s.job, lease, why)

    async def _start_machine(self, s: Snapshot, action: actions.StartMachine) -> None:
        await self.world.operator.start(action.lease)

    async def _stop_machine(self, s: Snapshot, action: actions.StopMachine) -> None:
        await self.world.operator.stop(action.lease, action.why)

    async def _start_stage(self, s: Snapshot, action: actions.StartStage) -> None:
        """Started under its nonce; the box makes a second start of the same nonce a no-op."""
        w, run, lease = self.world, action.run, action.lease
        now = w.clock.wall_ms()
        with w.database.write() as c:
            operation = operations.intend(
                c,
                Kind.STAGE_START,
                now,
                w.database.epoch,
                {"nonce": run.nonce},
                job_id=self.job_id,
                lease_id=lease.id,
                instance_id=lease.instance_id,
                nonce=run.nonce,
                stage=run.stage,
            )
        with w.database.write() as c:
            operations.set_state(c, operation, OpState.SENT, w.clock.wall_ms())
        try:
            status = await (await self.link.to(lease)).start_stage(run.nonce, reporters.key(self.spec, os.environ))
        except BoxError as error:
            # Only a box that never took the command certainly started nothing: any other end may come after the start.
            never_told = isinstance(error, AccessDenied | HostKeyChanged)
            state = OpState.REFUSED if never_told else OpState.UNKNOWN
            with w.database.write() as c:
                operations.set_state(c, operation, state, w.clock.wall_ms(), error=str(error)[:500])
            raise
        with w.database.write() as c:
            operations.store_reply(c, operation, None, dump(status))
            for op in operations.of_job(c, self.job_id):
                if (
                    op.kind is Kind.STAGE_START
                    and op.nonce == run.nonce
                    and op.state in (OpState.SENT, OpState.UNKNOWN)
                ):
                    operations.set_state(c, op.id, OpState.DONE, w.clock.wall_ms())
            stages.mark_started(c, run, w.clock.wall_ms())
            self._follow(c, s, run)

    def _follow(self, c: Connection, s: Snapshot, run: StageRun) -> None:
        """Move to the state of `run`, through those of stages kept from an earlier attempt: each was started once."""
        names = [each.stage for each in s.stages]
        passed = names.index(s.job.state) + 1 if s.job.state in names else 0
        job = s.job  # as it was decided on: a command that ran meanwhile wins
        for name in names[passed : names.index(run.stage) + 1]:
            to = fire(job.state, START[name], self._facts(s))
            jobs.move(c, job, to, self.world.clock.wall_ms(), self.world.database.epoch)
            job = jobs.get(c, self.job_id)

    async def _watch(self, s: Snapshot, action: actions.Watch) -> None:
        w = self.world
        log_file = w.job_folder(self.job_id) / "log.txt"
        box = await self.link.to(action.lease)
        seen = await look(box, s.job, action.run, w.database, w.clock, log_file)
        self.mirroring.follow(box, s.stages, s.report)
        known, self.memory.failure = self.memory.failure, (action.run.nonce, seen.failure) if seen.failure else None
        learned = seen.ended or self.memory.failure != known
        if not learned:  # a failure that is known is no reason to look again at once
            await self.bell.wait(max(w.settings.timing.poll_every, LOOK_S))

    async def _stop_stages(self, s: Snapshot, action: actions.StopStages) -> None:
        box = await self.link.to(action.lease)
        await box.stop_stages()
        for _ in range(STOP_LOOKS):
            if not (await box.status()).alive:
                break
            await self.bell.wait(1.0)
        else:
            return  # the plan decides how long it is asked
        with self.world.database.write() as c:
            reports.put(c, self.job_id, s.job.attempt, alive=0, seen_at=self.world.clock.wall_ms())

    async def _fetch_manifest(self, s: Snapshot, action: actions.FetchManifest) -> None:
        text, sha256 = await self._home(s).manifest(await self.link.to(action.lease), s.stages[-1])
        with self.world.database.write() as c:
            now = self.world.clock.wall_ms()
            jobs.change(c, s.job, now, self.world.database.epoch, manifest_json=text, manifest_sha256=sha256)
            events.add(c, "manifest.stored", now, job=self.job_id, sha256=sha256)

    async def _download(self, s: Snapshot, action: actions.Download) -> None:
        with self.world.database.write() as c:
            events.add(c, "download.started", self.world.clock.wall_ms(), job=self.job_id)
        box = await self.link.to(action.lease)
        async with calling(box):
            await self._home(s).download(box, lambda progress: None)

    async def _save(self, s: Snapshot, action: actions.Save) -> None:
        box = await self.link.to(action.lease)
        async with calling(box):
            count = await self.mirroring.bring(box, s.stages, (await box.status()).status)
        folder = str(self.mirroring.mirror.folder)
        with self.world.database.write() as c:
            events.add(c, "job.saved", self.world.clock.wall_ms(), job=self.job_id, files=count, folder=folder)

    async def _verify(self, s: Snapshot, action: actions.Verify) -> None:
        """L0 to L5 on what lies on this disk; then folder, receipt and state, the last two in one transaction."""
        w, home = self.world, self._home(s)
        lines: list[str] = []
        if (receipt := home.settled()) is not None:  # a crash came between the rename and this record
            self._verified(s, receipt)
            return
        report = await home.prove(lines.append)
        with w.database.write() as c:
            events.add(
                c,
                "verify.report",
                w.clock.wall_ms(),
                job=self.job_id,
                passed=report.passed,
                levels=lines,
                sample=report.sample,
            )
        if not report.passed:
            self.hold(s, HoldReason.VERIFY_FAILED, report.problem)
            return
        receipt = await asyncio.to_thread(home.settle_in, report, w.job_folder(self.job_id) / "log.txt")
        self._verified(s, receipt)
        await w.notify(f"{s.job.name}: the model is home and verified", receipt.folder)

    def _verified(self, s: Snapshot, receipt: Receipt) -> None:
        """Receipt and state in one transaction."""
        w = self.world
        now = w.clock.wall_ms()
        with w.database.write() as c:
            artifacts.add_receipt(
                c,
                s.job,
                now,
                folder=receipt.folder,
                files=json.dumps([asdict(f) for f in receipt.files]),
                levels=json.dumps(receipt.levels),
                level=receipt.level,
            )
            to = fire(s.job.state, Trigger.VERIFY, self._facts(s, has_receipt=True))
            jobs.move(c, s.job, to, now, w.database.epoch, model_dir=receipt.folder)

    async def _destroy(self, s: Snapshot, action: actions.Destroy) -> None:
        await self.world.operator.destroy(s.job, action.lease, action.why)

    async def _mark_lost(self, s: Snapshot, action: actions.MarkLost) -> None:
        """The host went away: a new machine, a new attempt from what is mirrored here, the same budget."""
        w = self.world
        await self.mirroring.stop()
        kept = self.mirroring.mirror.kept(s.stages)
        with w.database.write() as c:
            now = w.clock.wall_ms()
            leases.set_state(c, action.lease, LeaseState.LOST, now, why=action.why)
            if action.lease.machine_id is not None:
                machines.add_bad(c, action.lease.machine_id, action.why, now)
            changes = begin_again(c, s.job, s.stages, now, keep=kept, fresh=False)
            jobs.change(c, s.job, now, w.database.epoch, **changes)
        await self.link.drop()

    async def _move(self, s: Snapshot, action: actions.Move) -> None:
        w = self.world
        to = fire(s.job.state, action.trigger, self._facts(s))
        if to.is_terminal:
            await self._settle(s)
        with w.database.write() as c:
            jobs.move(c, s.job, to, w.clock.wall_ms(), w.database.epoch)
        if to is JobState.DESTROYED:
            await asyncio.to_thread(self.mirroring.forget_checkpoints)
        log.info("job.moved", job=self.job_id, to=to.value)
        if to.is_terminal:
            await w.notify(f"{s.job.name}: {to.value}", action.why)

    async def _settle(self, s: Snapshot) -> None:
        """What the market charged for each machine, beside what we counted. It may come later than we ask."""
        w = self.world
        try:
            charges = await w.operator.market.charges(s.job.created_at - DAY_MS)
        except (MarketError, CredentialsRefused) as error:
            log.info("cost.unsettled", job=self.job_id, error=str(error))
            return
        with w.database.write() as c:
            for lease in s.leases:
                amount = sum(charge.amount for charge in charges if charge.instance_id == lease.instance_id)
                leases.change(c, lease.id, settled_cost=amount)
                events.add(
                    c,
                    "cost.settled",
                    w.clock.wall_ms(),
                    job=self.job_id,
                    lease=lease.id,
                    charged=amount,
                    counted=lease.cost,
                )

    async def _hold_job(self, s: Snapshot, action: actions.HoldJob) -> None:
        self.hold(s, action.reason, action.detail)

    TABLE: ClassVar[dict[type[actions.Action], Any]] = {
        actions.Wait: _wait,
        actions.Rent: _rent,
        actions.Prove: _prove,
        actions.Provision: _provision,
        actions.StartMachine: _start_machine,
        actions.StopMachine: _stop_machine,
        actions.StartStage: _start_stage,
        actions.Watch: _watch,
        actions.StopStages: _stop_stages,
        actions.FetchManifest: _fetch_manifest,
        actions.Download: _download,
        actions.Save: _save,
        actions.Verify: _verify,
        actions.Destroy: _destroy,
        actions.MarkLost: _mark_lost,
        actions.Move: _move,
        actions.HoldJob: _hold_job,
    }

    # -- recording ------------------------------------------------------------------------------------------------

    def hold(self, s: Snapshot, reason: HoldReason, detail: str) -> None:
        w = self.world
        with w.database.write() as c:
            jobs.hold(c, s.job, reason, detail, w.clock.wall_ms(), w.database.epoch)
        log.warning("job.held", job=self.job_id, reason=reason.value, detail=detail)
        self.tell(f"{s.job.name} is HELD: {reason.value}", detail)

    def artifact_lost(self, s: Snapshot, why: str) -> None:
        """The receipt does not describe this disk any more: superseded, back to GGUF, and held for the person."""
        w = self.world
        if s.job.model_dir:
            set_aside(Path(s.job.model_dir))
        with w.database.write() as c:
            now = w.clock.wall_ms()
            artifacts.supersede(c, s.job, why, now)
            downloads.forget(c, self.job_id)
            to = fire(s.job.state, Trigger.ARTIFACT_LOST, self._facts(s))
            jobs.move(c, s.job, to, now, w.database.epoch, model_dir=None)
            jobs.hold(c, jobs.get(c, self.job_id), HoldReason.ARTIFACT_LOST, why, now, w.database.epoch)
        self.tell(f"{s.job.name} is HELD: {HoldReason.ARTIFACT_LOST.value}", why)

    async def attach_key(self, s: Snapshot) -> None:
        if s.lease is None:
            return
        with_key = own_key(self.world.settings.paths.ssh_key)
        try:
            await self.world.operator.market.attach_key(s.lease.instance_id, with_key)
        except (MarketError, CredentialsRefused) as error:
            log.info("key.not_attached", job=self.job_id, error=str(error))

    def tell(self, title: str, text: str) -> None:
        self._telling = asyncio.ensure_future(self.world.notify(title, text))

    def _home(self, s: Snapshot) -> Homecoming:
        w = self.world
        return Homecoming(s.job, self.spec, w.settings, w.database, w.clock, w.verify)

    def _facts(self, s: Snapshot, *, has_receipt: bool | None = None) -> Facts:
        return Facts(
            has_sft=self.spec.sft is not None,
            has_dpo=self.spec.dpo is not None,
            nothing_rented=s.nothing_rented,
            has_receipt=s.receipt is not None if has_receipt is None else has_receipt,
        )
