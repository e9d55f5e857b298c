"""The one function that permits a destroy; the one call that takes its permit is in operate.py.

Three facts can permit it (design: who may destroy): the receipt of the job's current artifact set, whose files were
looked at again just now; a token that names the instance id, typed by the person; or that no stage was ever started on
the machine. The database's triggers check the same facts on the operation row, so a mistake here is refused there.
"""

from __future__ import annotations

import json
from typing import cast

from daemon.artifacts.receipt import Receipt, ReceiptFile, recheck
from daemon.artifacts.verify import Depth
from daemon.clock import Clock
from daemon.domain.records import Job, Kind, Lease, ReceiptRow
from daemon.errors import HomeportError
from daemon.market.permit import DestroyPermit, PermitKind
from daemon.store import artifacts, jobs, operations
from daemon.store.database import Database


class NoPermit(HomeportError):
    """Nothing permits this destroy; the machine stays."""


class ArtifactLost(HomeportError):
    """The receipt stands in the database, but the files on this disk are not those it names any more."""


def issue(database: Database, clock: Clock, job: Job, lease: Lease) -> DestroyPermit:
    """A permit for exactly this lease, with its destroy operation committed as INTENT.

    Raises NoPermit, ArtifactLost, LostRace when the job changed meanwhile, IntegrityError when a trigger objects.
    """
    now = clock.wall_ms()
    with database.read() as c:
        receipt = artifacts.current_receipt(c, job)
    problem = recheck(_receipt(receipt)) if receipt is not None else None
    with database.write() as c:
        history = operations.of_lease(c, lease.id)
        token = artifacts.usable_token(c, job, lease.instance_id, now)
        if not any(op.may_have_begun_work for op in history):
            kind, reference = PermitKind.UNUSED, None
        elif receipt is not None and problem is None:
            kind, reference = PermitKind.RECEIPT, receipt.id
        elif token is not None:  # whoever typed it may have deleted the model that they do not want
            kind, reference = PermitKind.TOKEN, token.id
        elif problem is not None:
            raise ArtifactLost(problem, hint=f"jobctl show {job.id}")
        else:
            raise NoPermit(
                f"instance {lease.instance_id} may hold the only copy of the model of job {job.id}",
                hint=f"jobctl show {job.id}",
            )
        jobs.refuse_changed(c, job)  # a command that ran meanwhile wins
        operation = operations.intend(
            c,
            Kind.DESTROY,
            now,
            database.epoch,
            {"instance": lease.instance_id},
            job_id=job.id,
            lease_id=lease.id,
            instance_id=lease.instance_id,
            permit=kind.value,
            permit_ref=reference,
        )
        if kind is PermitKind.TOKEN and reference is not None:
            artifacts.use_token(c, reference, operation)
    return DestroyPermit(lease.instance_id, kind, reference, operation)


def _receipt(row: ReceiptRow) -> Receipt:
    return Receipt(
        manifest_sha256=row.manifest_sha256,
        folder=row.folder,
        level=cast(Depth, row.level),
        levels=tuple(json.loads(row.levels)),
        files=tuple(ReceiptFile(**file) for file in json.loads(row.files)),
    )
