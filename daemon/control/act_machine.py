"""The acts on a machine: rented, proven, made ready, started, stopped, let go."""

from __future__ import annotations

import asyncio
from pathlib import Path

from daemon.artifacts import folder as model_folder
from daemon.box.lines import clean_line
from daemon.box.upload import Upload
from daemon.control import accounts, quotes
from daemon.control.acting import Acting
from daemon.control.attempts import begin_again
from daemon.control.bell import PAUSE_S
from daemon.control.provision import AnotherAttempt, DataRefused, IntegrationRefused, provision
from daemon.control.transfers import told
from daemon.control.watch import calling
from daemon.domain import actions, ids
from daemon.domain.holds import HoldReason
from daemon.domain.records import Lease, LeaseState
from daemon.domain.snapshot import Snapshot
from daemon.errors import NoCredit, OfferGone, RemoteFailed
from daemon.store import artifacts, events, jobs, leases, machines, operations, stages
from remote_payload.contract import dump


async def rent(a: Acting, s: Snapshot, action: actions.Rent) -> None:
    """One offer, after a trusted listing that shows no machine of this job we do not know."""
    w = a.world
    if a.hold_without_mirror(s):
        return
    listing = await w.operator.market.listing()
    if not listing.trusted:
        await w.operator.market.account()  # raises what a person has to mend, such as a refused key
        await a.bell.wait(PAUSE_S)
        return
    accounts.refuse_another(w.database, listing.account)
    with w.database.read() as c:
        labels = {op.label for op in operations.of_job(c, a.job_id) if op.label}
        known = {lease.instance_id for lease in leases.of_job(c, a.job_id) if lease.is_held}
        known |= leases.written_off(c)
    ours = [i for i in listing.instances if ids.label_job(i.label) == a.job_id and i.id not in known]
    if any(i.label in labels for i in ours):
        await a.bell.wait(PAUSE_S)  # reconcile adopts it
        return
    if ours:  # rented for this job by a daemon whose database is not this one
        a.hold(s, HoldReason.RESTORED, f"instance {ours[0].id} is this job's, but not in this database")
        return
    if forgotten := _forgotten(a, s):
        where = f"its model was verified in {forgotten}, and this database has forgotten it"
        way = f"jobctl abandon {a.job_id} ends the job and leaves that folder; to train again, move it away first"
        a.hold(s, HoldReason.RESTORED, f"{where}: {way}")
        return
    ranking, disk_gb = await quotes.ranked(w, a.spec, Path(s.job.spec_dir), a.rows, listing.credit)
    for offer in ranking.chosen[:3]:
        try:
            await w.operator.rent(s.job, offer, disk_gb, a.spec.limits.hold)
            a.memory.nothing_fits_since_ms = None
            return
        except OfferGone:
            continue  # a definite refusal: only then the next one
        except NoCredit as error:
            a.hold(s, HoldReason.NO_CREDIT, str(error))
            return
    if a.memory.nothing_fits_since_ms is None:
        a.memory.nothing_fits_since_ms = w.clock.wall_ms()
        reasons = "; ".join(sorted({reason for _, reason in ranking.rejected})[:3])
        with w.database.write() as c:
            events.add(c, "market.nothing_fits", w.clock.wall_ms(), job=a.job_id, reasons=reasons)
    a.memory.asked_market_ms = w.clock.wall_ms()


def _forgotten(a: Acting, s: Snapshot) -> Path | None:
    """A model of the job that came home after the copy of the database was made that was put back."""
    with a.world.database.read() as c:
        known = {Path(folder).name for folder in artifacts.receipt_folders(c, a.job_id)}
    homes = model_folder.homes(a.world.settings.paths.models, name=s.job.name, job=a.job_id)
    return next((folder for folder in homes if folder.name not in known), None)


async def prove(a: Acting, s: Snapshot, action: actions.Prove) -> None:
    if a.link.failures == 0:
        await a.attach_key(s)
    proven = await (await a.link.to(action.lease)).prove()
    with a.world.database.write() as c:
        leases.change(c, action.lease.id, host_key=proven.host_key, root=proven.root, python=proven.python)
        events.add(c, "box.proven", a.world.clock.wall_ms(), job=a.job_id, lease=action.lease.id)


async def make_ready(a: Acting, s: Snapshot, action: actions.Provision) -> None:
    lease = action.lease
    if not s.work_started(lease) and a.hold_without_mirror(s):
        return
    try:
        box = await a.link.to(lease)
        mirrored = [] if s.work_started(lease) else await asyncio.to_thread(_mirrored, a, s)
        settings = a.world.settings
        with a.world.database.read() as c:
            given = events.newest(c, a.job_id, ("base.sent",))
        base = given.body["files"] if given is not None else None
        with told(a.world, a.job_id, "UPLOAD") as follow:
            async with calling(box):
                prepared, python, sent = await provision(
                    box, s.job, a.spec, lease, s.stages, settings, mirrored, follow, base
                )
    except AnotherAttempt as error:
        a.hold(s, HoldReason.RESTORED, f"{error}: jobctl retry {a.job_id} begins one that both know")
        return
    except IntegrationRefused as error:
        a.hold(s, HoldReason.INTEGRATION, str(error))
        return
    except DataRefused as error:
        a.hold(s, HoldReason.DATA, str(error))
        return
    except RemoteFailed as error:
        await _give_back(a, s, lease, f"{error} {clean_line(error.output[-500:])}".strip())
        return
    with a.world.database.write() as c:
        jobs.change(c, s.job, a.world.clock.wall_ms(), a.world.database.epoch, prepared_json=dump(prepared))
        leases.change(c, lease.id, provisioned=s.job.attempt, python=python)
        if base is None and sent:
            events.add(c, "base.sent", a.world.clock.wall_ms(), job=a.job_id, lease=lease.id, files=sent)
        events.add(
            c,
            "box.prepared",
            a.world.clock.wall_ms(),
            job=a.job_id,
            lease=lease.id,
            line=prepared.line,
            steps=prepared.steps,
            kept=prepared.kept,
        )


async def _give_back(a: Acting, s: Snapshot, lease: Lease, why: str) -> None:
    """This machine is no good: remembered, and returned if nothing was started on it."""
    with a.world.database.write() as c:
        if lease.machine_id is not None:
            machines.add_bad(c, lease.machine_id, why, a.world.clock.wall_ms())
        events.add(c, "box.unfit", a.world.clock.wall_ms(), job=a.job_id, lease=lease.id, why=why[:500])
    if s.work_started(lease):
        a.hold(s, HoldReason.INTERNAL, why)
    else:
        await a.world.operator.destroy(s.job, lease, why)


async def start(a: Acting, s: Snapshot, action: actions.StartMachine) -> None:
    await a.world.operator.start(action.lease)


async def stop(a: Acting, s: Snapshot, action: actions.StopMachine) -> None:
    await a.world.operator.stop(action.lease, action.why)


async def destroy(a: Acting, s: Snapshot, action: actions.Destroy) -> None:
    await a.world.operator.destroy(s.job, action.lease, action.why)
    machine = action.lease.machine_id
    wanted = s.job.hold_reason is None and not s.job.is_ending  # it goes because it failed us
    if wanted and machine is not None and not s.work_started(action.lease):
        with a.world.database.write() as c:
            machines.add_bad(c, machine, action.why, a.world.clock.wall_ms())


async def mark_lost(a: Acting, s: Snapshot, action: actions.MarkLost) -> None:
    """The host went away: a new machine, a new attempt from what is mirrored here, the same budget."""
    w = a.world
    if a.hold_without_mirror(s):
        return
    await a.mirroring.stop()
    kept = a.mirroring.mirror.kept(s.stages)
    with w.database.write() as c:
        now = w.clock.wall_ms()
        leases.set_state(c, action.lease, LeaseState.LOST, now, why=action.why)
        if action.lease.machine_id is not None:
            machines.add_bad(c, action.lease.machine_id, action.why, now)
        changes = begin_again(c, s.job, s.stages, now, keep=kept, fresh=False)
        jobs.change(c, s.job, now, w.database.epoch, **changes)
    await a.link.drop()


def _mirrored(a: Acting, s: Snapshot) -> list[Upload]:
    """What an earlier machine of the job made, as far as it is here."""
    with a.world.database.read() as c:
        earlier = stages.lineage(c, a.job_id, s.stage.stage) if s.stage is not None else []
    return list(a.mirroring.mirror.uploads(s.stages, earlier))
