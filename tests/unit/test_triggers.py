"""The database keeps its rules against raw SQL: each trigger and index is shown firing, and letting the legal by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, update
from sqlalchemy.exc import IntegrityError
from store import INSTANCE, JOB, MANIFEST, NOW, add_job, add_lease, destroy, opened, start_stage

from daemon.domain.lifecycle import EDGES, JobState
from daemon.domain.records import Kind, LeaseState, OpState
from daemon.store import artifacts, events, jobs, operations, schema
from daemon.store.database import Database
from daemon.store.triggers import TRIGGERS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path)
    yield database
    database.close()


def sql(c: Connection, statement: str) -> None:
    c.exec_driver_sql(statement)


def with_receipt(c: Connection) -> int:
    """A lease that worked, and a receipt of the current artifact set."""
    add_job(c, manifest_sha256=MANIFEST)
    lease = add_lease(c)
    start_stage(c, lease)
    artifacts.add_receipt(c, jobs.get(c, JOB), NOW, folder="/m", files="[]", levels="[]", level="full")
    return lease


def with_token(c: Connection) -> int:
    add_job(c)
    lease = add_lease(c)
    start_stage(c, lease)
    artifacts.add_token(c, jobs.get(c, JOB), INSTANCE, "person", NOW, NOW + 1000)
    return lease


# name -> (what is there before, the raw SQL that must be refused)
def _plain(c: Connection) -> None:
    add_job(c)


def _rented(c: Connection) -> None:
    add_job(c)
    add_lease(c)


def _worked(c: Connection) -> None:
    add_job(c)
    start_stage(c, add_lease(c))


def _lost(c: Connection) -> None:
    add_job(c)
    add_lease(c, state=LeaseState.LOST)


def _unresolved(c: Connection) -> None:
    add_job(c)
    operations.set_state(c, operations.intend(c, Kind.CREATE, NOW, 1, {}, job_id=JOB, label="l"), OpState.SENT, NOW)


def _returning(c: Connection) -> None:
    add_job(c)
    destroy(c, add_lease(c), "unused")


def _used_token(c: Connection) -> None:
    lease = with_token(c)
    artifacts.use_token(c, 1, destroy(c, lease, "token", 1))


def _receipted(c: Connection) -> None:
    with_receipt(c)
    events.add(c, "x", NOW)
    artifacts.supersede(c, jobs.get(c, JOB), "test", NOW)


INSERT_DESTROY = (
    "INSERT INTO operations "
    "(kind, state, job_id, lease_id, instance_id, permit, permit_ref, epoch, request, created_at) "
    f"VALUES ('destroy', 'INTENT', '{JOB}', 1, {INSTANCE}, {{permit}}, {{ref}}, 1, '{{{{}}}}', {NOW})"
)
REFUSED: list[tuple[str, Callable[[Connection], None], str]] = [
    ("illegal_edge", _plain, "UPDATE jobs SET state = 'SFT'"),
    ("illegal_edge", _plain, "UPDATE jobs SET state = 'DESTROYED'"),
    ("terminal_with_machine", _rented, "UPDATE jobs SET state = 'CANCELLED'"),
    ("terminal_with_machine", _lost, "UPDATE jobs SET state = 'FAILED'"),
    ("terminal_with_machine", _unresolved, "UPDATE jobs SET state = 'CANCELLED'"),
    ("destroy_without_permit", _worked, INSERT_DESTROY.format(permit="NULL", ref="NULL")),
    ("destroy_without_permit", _worked, INSERT_DESTROY.format(permit="'receipt'", ref="1")),
    ("destroy_without_permit", _worked, INSERT_DESTROY.format(permit="'token'", ref="1")),
    ("destroy_without_permit", _worked, INSERT_DESTROY.format(permit="'unused'", ref="NULL")),
    (
        "destroy_of_another",
        _rented,
        INSERT_DESTROY.format(permit="'unused'", ref="NULL").replace(f" {INSTANCE},", " 999,"),
    ),
    (
        "stage_on_unused_destroy",
        _returning,
        "INSERT INTO operations (kind, state, job_id, lease_id, epoch, request, created_at) "
        f"VALUES ('stage_start', 'INTENT', '{JOB}', 1, 1, '{{}}', {NOW})",
    ),
    (
        "create_while_rented",
        _rented,
        "INSERT INTO operations (kind, state, job_id, label, epoch, request, created_at) "
        f"VALUES ('create', 'INTENT', '{JOB}', 'x', 1, '{{}}', {NOW})",
    ),
    ("operation_backwards", _unresolved, "UPDATE operations SET state = 'INTENT'"),
    ("spec_is_immutable", _plain, "UPDATE jobs SET spec_json = '{\"other\": 1}'"),
    ("token_single_use", _used_token, "UPDATE tokens SET used_by = 99"),
    ("events_update", _receipted, "UPDATE events SET kind = 'y'"),
    ("events_delete", _receipted, "DELETE FROM events"),
    ("receipts_update", _receipted, "UPDATE receipts SET folder = '/elsewhere'"),
    ("receipts_delete", _receipted, "DELETE FROM receipts"),
    ("supersessions_update", _receipted, "UPDATE supersessions SET reason = 'y'"),
    ("supersessions_delete", _receipted, "DELETE FROM supersessions"),
]


@pytest.mark.parametrize(("name", "before", "statement"), REFUSED)
def test_raw_sql_is_refused(
    database: Database, name: str, before: Callable[[Connection], None], statement: str
) -> None:
    """The named trigger fires, whoever writes."""
    with database.write() as c:
        before(c)

    with pytest.raises(IntegrityError, match=name), database.write() as c:
        sql(c, statement)


def test_verified_needs_a_receipt(database: Database) -> None:
    """DOWNLOADED becomes VERIFIED only beside a receipt of the current artifact set."""
    with database.write() as c:
        add_job(c, manifest_sha256=MANIFEST)
        for state in ("PROVISIONED", "SFT", "DPO", "GGUF", "DOWNLOADED"):
            sql(c, f"UPDATE jobs SET state = '{state}'")

    with pytest.raises(IntegrityError, match="verified_without_receipt"), database.write() as c:
        sql(c, "UPDATE jobs SET state = 'VERIFIED'")
    with database.write() as c:
        artifacts.add_receipt(c, jobs.get(c, JOB), NOW, folder="/m", files="[]", levels="[]", level="full")
        sql(c, "UPDATE jobs SET state = 'VERIFIED'")


def test_every_trigger_is_shown(database: Database) -> None:
    """No trigger without a case above."""
    shown = {name for name, _, _ in REFUSED} | {"verified_without_receipt", "destroy_sent_without_permit"}

    assert shown == set(TRIGGERS)


@pytest.mark.parametrize("make", [with_receipt, with_token], ids=["receipt", "token"])
def test_the_two_permits_for_a_worked_machine(database: Database, make: Callable[[Connection], int]) -> None:
    """A current receipt, or a typed token, permits what is otherwise refused."""
    with database.write() as c:
        lease = make(c)
        operation = destroy(c, lease, "receipt" if make is with_receipt else "token", 1)
        operations.set_state(c, operation, OpState.SENT, NOW)

        assert operations.get(c, operation).state is OpState.SENT


def _superseded(c: Connection) -> None:
    artifacts.supersede(c, jobs.get(c, JOB), "retry", NOW)


def _other_set(c: Connection) -> None:
    c.execute(update(schema.jobs).values(manifest_sha256="other"))


def _next_attempt(c: Connection) -> None:
    c.execute(update(schema.jobs).values(attempt=2))


@pytest.mark.parametrize("lose", [_superseded, _other_set, _next_attempt])
def test_a_receipt_of_another_artifact_set_permits_nothing(
    database: Database, lose: Callable[[Connection], None]
) -> None:
    """Superseded, of another manifest, or of an earlier attempt: no permit, neither to intend nor to send."""
    with database.write() as c:
        lease = with_receipt(c)
        intended = destroy(c, lease, "receipt", 1)
        lose(c)

    with pytest.raises(IntegrityError, match="destroy_sent_without_permit"), database.write() as c:
        operations.set_state(c, intended, OpState.SENT, NOW)
    with pytest.raises(IntegrityError, match="destroy_without_permit"), database.write() as c:
        destroy(c, lease, "receipt", 1)


@pytest.mark.parametrize("state", [OpState.SENT, OpState.UNKNOWN, OpState.DONE])
def test_a_machine_that_may_have_worked_is_not_unused(database: Database, state: OpState) -> None:
    """A stage_start that was sent, whatever became of it, ends `unused` for ever."""
    with database.write() as c:
        add_job(c)
        lease = add_lease(c)
        start_stage(c, lease, state)

    with pytest.raises(IntegrityError, match="destroy_without_permit"), database.write() as c:
        destroy(c, lease, "unused")


def test_one_live_lease(database: Database) -> None:
    """A job has at most one LIVE lease."""
    with database.write() as c:
        add_job(c)
        add_lease(c, instance=1)
        add_lease_by_sql = (
            "INSERT INTO leases (job_id, instance_id, label, state, created_at) "
            f"VALUES ('{JOB}', 2, 'other', 'LIVE', {NOW})"
        )

    with pytest.raises(IntegrityError), database.write() as c:
        sql(c, add_lease_by_sql)


def test_one_open_create(database: Database) -> None:
    """A job has at most one create whose fate is unknown."""
    with database.write() as c:
        _unresolved(c)

    with pytest.raises(IntegrityError), database.write() as c:
        operations.intend(c, Kind.CREATE, NOW, 1, {}, job_id=JOB, label="second")


def test_edges_of_the_table_pass(database: Database) -> None:
    """What the lifecycle allows, the trigger allows."""
    with database.write() as c:
        add_job(c)
        for state in ("PROVISIONED", "QUEUED", "PROVISIONED", "DPO", "GGUF", "DOWNLOADED"):
            sql(c, f"UPDATE jobs SET state = '{state}'")

        assert jobs.get(c, JOB).state is JobState.DOWNLOADED
    assert len(EDGES) > 10
