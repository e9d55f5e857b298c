"""The tables. STRICT; money in integer micro-dollars, wall time in integer UTC milliseconds, JSON as text.

The rules that must hold even against our own mistakes are triggers and partial indexes (triggers.py), so that raw SQL
cannot break them either.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import BLOB, INTEGER, REAL, TEXT, Column, ForeignKey, Index, MetaData, Table, UniqueConstraint, text
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

metadata = MetaData()


def _table(name: str, *parts: SchemaItem) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, sqlite_autoincrement=True)


def _id() -> Column[int]:
    return Column("id", INTEGER, primary_key=True, autoincrement=True)


def _required(name: str, kind: type[TypeEngine[Any]], *extra: ForeignKey) -> Column[Any]:
    return Column(name, kind, *extra, nullable=False)


# One row each: install_id, machine_id, created_at, ...
meta = _table("meta", Column("key", TEXT, primary_key=True), _required("value", TEXT))

# The one writer. `epoch` only grows; a process with an older one is fenced.
leader = _table(
    "leader",
    Column("id", INTEGER, sa.CheckConstraint("id = 1"), primary_key=True),
    _required("epoch", INTEGER),
    _required("pid", INTEGER),
    _required("host", TEXT),
    _required("since", INTEGER),
    _required("renewed", INTEGER),
)

jobs = _table(
    "jobs",
    Column("id", TEXT, primary_key=True),
    _required("name", TEXT),
    _required("request_id", TEXT),
    _required("state", TEXT),
    Column("version", INTEGER, nullable=False, server_default="1"),
    Column("epoch", INTEGER, nullable=False, server_default="0"),
    Column("attempt", INTEGER, nullable=False, server_default="1"),
    _required("spec_text", TEXT),
    _required("spec_json", TEXT),
    _required("spec_sha256", TEXT),
    Column("model_revision", TEXT),  # the hub commit that box and workstation must agree on
    _required("spec_dir", TEXT),  # relative paths in the spec are relative to this folder
    Column("hold_reason", TEXT),
    Column("hold_detail", TEXT),
    Column("hold_since", INTEGER),
    Column("hold_by", TEXT),
    Column("wish", TEXT),  # CANCEL, DISCARD: what the person asked for and is not done yet
    Column("wish_by", TEXT),
    Column("manifest_sha256", TEXT),  # of the current artifact set; `retry` clears it
    Column("manifest_json", TEXT),
    Column("data_json", TEXT),  # the canonical data sets: {"sft": {"sha256", "rows", "original_sha256"}, ...}
    Column("prepared_json", TEXT),
    _required("created_at", INTEGER),
    _required("updated_at", INTEGER),
    Column("state_since", INTEGER, nullable=False, server_default="0"),
    Column("spoken_at", INTEGER, nullable=False, server_default="0"),  # the person's last submit, resume or retry
    Column("finished_at", INTEGER),
    Column("model_dir", TEXT),  # where the verified model lies
    UniqueConstraint("request_id"),
)

attempts = _table(
    "attempts",
    _required("job_id", TEXT, ForeignKey("jobs.id")),
    _required("n", INTEGER),
    _required("spec_sha256", TEXT),
    Column("lease_id", INTEGER, ForeignKey("leases.id")),
    _required("created_at", INTEGER),
    sa.PrimaryKeyConstraint("job_id", "n"),
)

# The nonces of an attempt's stages. `done_json` is the box's done.json, checked.
stages = _table(
    "stages",
    _required("job_id", TEXT, ForeignKey("jobs.id")),
    _required("attempt", INTEGER),
    _required("stage", TEXT),
    _required("nonce", TEXT),
    Column("fresh", INTEGER, nullable=False, server_default="0"),
    Column("started_at", INTEGER),
    Column("done_at", INTEGER),
    Column("done_json", TEXT),
    sa.PrimaryKeyConstraint("job_id", "attempt", "stage"),
)

leases = _table(
    "leases",
    _id(),
    Column("job_id", TEXT, ForeignKey("jobs.id")),  # NULL: an adopted orphan
    Column("operation_id", INTEGER),  # the create that made it
    _required("instance_id", INTEGER),
    _required("label", TEXT),
    _required("state", TEXT),  # LIVE, LOST, GONE, WRITTEN_OFF
    Column("offer_json", TEXT),
    Column("machine_id", INTEGER),
    Column("host_id", INTEGER),
    Column("gpu_name", TEXT, nullable=False, server_default=""),
    Column("num_gpus", INTEGER, nullable=False, server_default="0"),
    Column("price_per_hour", INTEGER, nullable=False, server_default="0"),
    Column("storage_per_hour", INTEGER, nullable=False, server_default="0"),
    Column("up_per_gb", INTEGER, nullable=False, server_default="0"),
    Column("down_per_gb", INTEGER, nullable=False, server_default="0"),
    Column("status", TEXT),  # the market's actual_status, last trusted listing
    Column("intended", TEXT),
    Column("status_since", INTEGER),  # when the listings first said so
    Column("status_msg", TEXT),
    Column("direct", TEXT),  # host:port
    Column("proxy", TEXT),
    Column("challenge", TEXT),  # per-instance secret of the host key proof
    Column("host_key", TEXT),  # pinned after the proof
    Column("provisioned", INTEGER),  # the attempt whose preflight, upload and prepare passed on it
    Column("python", TEXT),  # interpreter that bootstrap reported
    Column("root", TEXT),  # absolute root on the box
    Column("start_ms", INTEGER),  # contract creation, by the market
    Column("observed_ms", INTEGER),  # last trusted listing that showed it; costs are counted up to here
    Column("end_ms", INTEGER),
    Column("running_ms", INTEGER, nullable=False, server_default="0"),  # time that may have billed the GPU
    Column("idle_ms", INTEGER, nullable=False, server_default="0"),  # time that billed the disk alone
    Column("bytes_up", INTEGER, nullable=False, server_default="0"),
    Column("bytes_down", INTEGER, nullable=False, server_default="0"),
    Column("cost", INTEGER, nullable=False, server_default="0"),
    Column("settled_cost", INTEGER),  # by the market's own charges
    Column("gpu_util", REAL),
    _required("created_at", INTEGER),
    Column("last_seen", INTEGER),
    Column("absent_first", INTEGER),  # first trusted listing without it since it was last seen
    Column("absent_count", INTEGER, nullable=False, server_default="0"),
    Column("gone_at", INTEGER),
    Column("recheck_at", INTEGER),  # once more, a day after GONE
    UniqueConstraint("instance_id", "label"),
)
Index("one_live_lease", leases.c.job_id, unique=True, sqlite_where=text("state = 'LIVE' AND job_id IS NOT NULL"))

# Whatever costs money, deletes, or starts something remote: written before it is done.
operations = _table(
    "operations",
    _id(),
    _required("kind", TEXT),  # create, start, stop, destroy, stage_start
    _required("state", TEXT),  # INTENT, SENT, DONE, REFUSED, UNKNOWN, ABSENT
    Column("job_id", TEXT, ForeignKey("jobs.id")),
    Column("lease_id", INTEGER, ForeignKey("leases.id")),
    Column("instance_id", INTEGER),
    Column("label", TEXT),  # of a create
    Column("nonce", TEXT),  # of a stage_start
    Column("stage", TEXT),
    Column("permit", TEXT),  # of a destroy: receipt, token, unused
    Column("permit_ref", INTEGER),
    _required("epoch", INTEGER),
    _required("request", TEXT),
    Column("reply_status", INTEGER),
    Column("reply", TEXT),  # verbatim
    Column("error", TEXT),
    _required("created_at", INTEGER),
    Column("sent_at", INTEGER),
    Column("resolved_at", INTEGER),
    # Evidence of absence for an UNKNOWN create: trusted listings that ran, and the awake seconds they span.
    Column("absent_count", INTEGER, nullable=False, server_default="0"),
    Column("absent_awake_s", REAL, nullable=False, server_default="0"),
)
Index(
    "one_open_create",
    operations.c.job_id,
    unique=True,
    sqlite_where=text("kind = 'create' AND state IN ('INTENT', 'SENT', 'UNKNOWN')"),
)
Index("one_label", operations.c.label, unique=True, sqlite_where=text("label IS NOT NULL"))

events = _table(
    "events",
    _id(),
    Column("job_id", TEXT),
    Column("lease_id", INTEGER),
    _required("at", INTEGER),
    _required("kind", TEXT),
    _required("by", TEXT),  # daemon, or the person's name
    _required("body", TEXT),  # JSON object
)
Index("events_of_job", events.c.job_id, events.c.id)

receipts = _table(
    "receipts",
    _id(),
    _required("job_id", TEXT, ForeignKey("jobs.id")),
    _required("attempt", INTEGER),
    _required("manifest_sha256", TEXT),
    _required("folder", TEXT),
    _required("files", TEXT),  # JSON [{path, size, mtime_ns, inode, sha256, ends}]
    _required("levels", TEXT),  # JSON: the numbers of L0..L5
    _required("level", TEXT),  # full; hash as the spec asks; L4 or L3 as a person accepted
    _required("created_at", INTEGER),
)
# A receipt is never changed; it is superseded by a row here.
supersessions = _table(
    "supersessions",
    Column("receipt_id", INTEGER, ForeignKey("receipts.id"), primary_key=True),
    _required("at", INTEGER),
    _required("reason", TEXT),
)

# A person typed an instance id. Single use, for one attempt, void after 15 minutes or any resume or retry.
tokens = _table(
    "tokens",
    _id(),
    _required("job_id", TEXT, ForeignKey("jobs.id")),
    _required("instance_id", INTEGER),
    _required("attempt", INTEGER),
    _required("by", TEXT),
    _required("created_at", INTEGER),
    _required("expires_at", INTEGER),
    Column("void_at", INTEGER),
    Column("used_by", INTEGER),  # the destroy operation
)

# The durable set of a download, in this one place: bit i of `durable` is chunk i on the platter.
downloads = _table(
    "downloads",
    _required("job_id", TEXT, ForeignKey("jobs.id")),
    _required("path", TEXT),
    _required("manifest_sha256", TEXT),
    _required("size", INTEGER),
    _required("chunk_size", INTEGER),
    _required("durable", BLOB),
    Column("complete", INTEGER, nullable=False, server_default="0"),
    Column("resent_bytes", INTEGER, nullable=False, server_default="0"),
    Column("bad_chunks", INTEGER, nullable=False, server_default="0"),
    _required("updated_at", INTEGER),
    sa.PrimaryKeyConstraint("job_id", "path"),
)

# The last thing a job's box said, and how far its event log was read.
box_reports = _table(
    "box_reports",
    Column("job_id", TEXT, ForeignKey("jobs.id"), primary_key=True),
    _required("attempt", INTEGER),
    Column("status_json", TEXT),
    Column("alive", INTEGER),
    Column("seen_at", INTEGER),  # last contact
    Column("lost_since", INTEGER),  # out of contact since
    Column("events_offset", INTEGER, nullable=False, server_default="0"),
    Column("log_offset", INTEGER, nullable=False, server_default="0"),
)

metrics = _table(
    "metrics",
    _required("job_id", TEXT, ForeignKey("jobs.id")),
    _required("attempt", INTEGER),
    _required("stage", TEXT),
    _required("step", INTEGER),
    _required("at", INTEGER),
    Column("total", INTEGER),
    Column("loss", REAL),
    Column("lr", REAL),
    Column("tokens", INTEGER),
    Column("tok_s", REAL),
    _required("body", TEXT),  # the whole step event
    sa.PrimaryKeyConstraint("job_id", "attempt", "stage", "step"),
)

# Machines that failed us, and are not rented again soon.
bad_machines = _table(
    "bad_machines",
    Column("machine_id", INTEGER, primary_key=True),
    _required("reason", TEXT),
    _required("at", INTEGER),
)
