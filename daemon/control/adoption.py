"""A machine whose job this database does not know is taken back: by its label, its own job.json, and the job file.

The label names the job. The market gives the secret that the machine proves itself with; the machine says under which
nonces its stages run. The person brings the job file, which must be the one that it works on. The job is then HELD, and
`resume` follows the stages under the nonces that they have: what was trained is not trained again.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from daemon.box import challenge
from daemon.box.address import BoxAddress
from daemon.box.box import Proven
from daemon.control.jobfile import build
from daemon.control.operate import presume_work
from daemon.control.world import World
from daemon.domain import ids
from daemon.domain.holds import HoldReason
from daemon.domain.records import Job, Lease, StageRun
from daemon.domain.spec import JobSpec
from daemon.errors import BoxError, NoSuchJob, Refused
from daemon.store import events, jobs, leases, stages
from remote_payload.contract import JobFile, Prepared, dump

OURS = ("away_limit_s", "notify_url", "contract", "chunk_size")  # of job.json: they follow this daemon, not the job


async def look(world: World, instance: int) -> tuple[Lease, str, Proven, JobFile, Prepared | None]:
    """The orphan, and what it says of itself. Nothing is changed. Raises NoSuchJob, Refused, BoxError, MarketError."""
    with world.database.read() as c:
        lease = leases.by_instance(c, instance)
        known = jobs.ids(c)
    if lease is None or not lease.is_held:
        raise NoSuchJob(f"no machine {instance} with a label of this installation", hint="jobctl leases")
    named = ids.label_job(lease.label)
    if lease.job_id is not None or named is None or named in known or not ids.is_job_id(named):
        raise Refused(f"instance {instance} is that of job {lease.job_id or named}", hint="jobctl leases")
    seen = await world.operator.market.show(instance)
    secret = seen.env.get(challenge.ENV_NAME) if seen else None
    if seen is None or not seen.is_running or secret is None:
        status = (seen.actual_status if seen else None) or "not listed"
        why = "the market does not say what it proves itself with" if seen and seen.is_running else f"it is {status}"
        raise Refused(
            f"instance {instance} cannot be asked: {why}", hint="start it in the market's console, then again"
        )
    image = world.settings.image
    ends = tuple(end for end in (seen.direct, seen.proxy) if end is not None)
    address = BoxAddress(instance, ends, None, secret, image.root, image.python)
    box = world.connect(address, lambda up, down: None)
    try:
        proven = await box.prove()
        job, prepared = await box.job(), await box.prepared()
    finally:
        await box.aclose()
    if job is None:
        raise Refused(f"nothing was begun on instance {instance}", hint="end it in the market's console")
    sane = job.attempt > 0 and all(ids.is_nonce(plan.nonce) for plan in job.stages)
    if job.job != named or not sane:
        raise BoxError(f"instance {instance} has no job.json of job {named}, as its label says", hint="jobctl leases")
    return lease, secret, proven, job, prepared


def store(
    c: Connection, world: World, row: dict[str, Any], spec: JobSpec, lease: Lease, secret: str, proven: Proven,
    theirs: JobFile, prepared: Prepared | None, by: str,
) -> str:  # fmt: skip
    """The job and its lease as they would stand here had the database not been lost; HELD. Raises Refused."""
    now, epoch = world.clock.wall_ms(), world.database.epoch
    ready = prepared is not None and prepared.ok
    jobs.add(
        c, now, by, id=theirs.job, attempt=theirs.attempt, prepared_json=dump(prepared) if prepared and ready else None,
        **row,
    )  # fmt: skip
    runs = [StageRun(theirs.job, theirs.attempt, plan.stage, plan.nonce, plan.fresh, None, None, None)
            for plan in theirs.stages]  # fmt: skip
    names = [run.stage for run in runs]
    stages.begin_attempt(c, theirs.job, theirs.attempt, spec.sha256, names, now, keep=runs, fresh=False)
    job = jobs.get(c, theirs.job)
    _refuse_another(job, spec, lease, tuple(runs), theirs, world)
    leases.change(
        c, lease.id, job_id=job.id, challenge=secret, host_key=proven.host_key, root=proven.root, python=proven.python,
        provisioned=theirs.attempt if ready else None,
    )  # fmt: skip
    events.add(c, "lease.adopted", now, job=job.id, lease=lease.id, by=by, instance=lease.instance_id)
    presume_work(c, leases.get(c, lease.id), now, epoch)
    why = f"instance {lease.instance_id} was taken back; what it did before is not recorded here"
    jobs.hold(c, job, HoldReason.RESTORED, why, now, epoch)
    return job.id


def _refuse_another(
    job: Job, spec: JobSpec, lease: Lease, runs: tuple[StageRun, ...], theirs: JobFile, world: World
) -> None:
    """The job file must be the one that the machine works on, to the last setting. Raises Refused."""
    here, there = (asdict(each) for each in (build(job, spec, lease, runs, world.settings), theirs))
    wanted = [name for name, block in (("SFT", spec.sft), ("DPO", spec.dpo)) if block is not None] + ["GGUF"]
    differ = {key: (there[key], here[key]) for key in here if key not in OURS and here[key] != there[key]}
    if (theirs_run := [str(run.stage) for run in runs]) != wanted:
        differ["stages"] = (theirs_run, wanted)
    if differ:
        said = "; ".join(f"{key}: there {str(a)[:80]}, here {str(b)[:80]}" for key, (a, b) in list(differ.items())[:3])
        hint = "give the file that the job was submitted with"
        raise Refused(f"instance {lease.instance_id} works on another job file ({said})", hint=hint)
