"""The first schema, frozen: tables, indexes and triggers as they were when it was released."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = [
    r"""CREATE TABLE bad_machines (
    machine_id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    reason TEXT NOT NULL,
    at INTEGER NOT NULL
)
 STRICT""",
    r"""CREATE TABLE events (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    job_id TEXT,
    lease_id INTEGER,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    "by" TEXT NOT NULL,
    body TEXT NOT NULL
)
 STRICT""",
    r"""CREATE INDEX events_of_job ON events (job_id, id)""",
    r"""CREATE TABLE jobs (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    request_id TEXT NOT NULL,
    state TEXT NOT NULL,
    version INTEGER DEFAULT '1' NOT NULL,
    epoch INTEGER DEFAULT '0' NOT NULL,
    attempt INTEGER DEFAULT '1' NOT NULL,
    spec_text TEXT NOT NULL,
    spec_json TEXT NOT NULL,
    spec_sha256 TEXT NOT NULL,
    model_revision TEXT,
    spec_dir TEXT NOT NULL,
    hold_reason TEXT,
    hold_detail TEXT,
    hold_since INTEGER,
    hold_by TEXT,
    wish TEXT,
    wish_by TEXT,
    manifest_sha256 TEXT,
    manifest_json TEXT,
    data_json TEXT,
    prepared_json TEXT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    state_since INTEGER DEFAULT '0' NOT NULL,
    spoken_at INTEGER DEFAULT '0' NOT NULL,
    finished_at INTEGER,
    model_dir TEXT,
    PRIMARY KEY (id),
    UNIQUE (request_id)
)
 STRICT""",
    r"""CREATE TABLE leader (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT CHECK (id = 1),
    epoch INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    host TEXT NOT NULL,
    since INTEGER NOT NULL,
    renewed INTEGER NOT NULL
)
 STRICT""",
    r"""CREATE TABLE meta (
    "key" TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY ("key")
)
 STRICT""",
    r"""CREATE TABLE box_reports (
    job_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    status_json TEXT,
    alive INTEGER,
    seen_at INTEGER,
    lost_since INTEGER,
    events_offset INTEGER DEFAULT '0' NOT NULL,
    log_offset INTEGER DEFAULT '0' NOT NULL,
    PRIMARY KEY (job_id),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE TABLE downloads (
    job_id TEXT NOT NULL,
    path TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    chunk_size INTEGER NOT NULL,
    durable BLOB NOT NULL,
    complete INTEGER DEFAULT '0' NOT NULL,
    resent_bytes INTEGER DEFAULT '0' NOT NULL,
    bad_chunks INTEGER DEFAULT '0' NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, path),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE TABLE leases (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    job_id TEXT,
    operation_id INTEGER,
    instance_id INTEGER NOT NULL,
    label TEXT NOT NULL,
    state TEXT NOT NULL,
    offer_json TEXT,
    machine_id INTEGER,
    host_id INTEGER,
    gpu_name TEXT DEFAULT '' NOT NULL,
    num_gpus INTEGER DEFAULT '0' NOT NULL,
    price_per_hour INTEGER DEFAULT '0' NOT NULL,
    storage_per_hour INTEGER DEFAULT '0' NOT NULL,
    up_per_gb INTEGER DEFAULT '0' NOT NULL,
    down_per_gb INTEGER DEFAULT '0' NOT NULL,
    status TEXT,
    intended TEXT,
    status_since INTEGER,
    status_msg TEXT,
    direct TEXT,
    proxy TEXT,
    challenge TEXT,
    host_key TEXT,
    provisioned INTEGER,
    python TEXT,
    root TEXT,
    start_ms INTEGER,
    observed_ms INTEGER,
    end_ms INTEGER,
    running_ms INTEGER DEFAULT '0' NOT NULL,
    idle_ms INTEGER DEFAULT '0' NOT NULL,
    bytes_up INTEGER DEFAULT '0' NOT NULL,
    bytes_down INTEGER DEFAULT '0' NOT NULL,
    cost INTEGER DEFAULT '0' NOT NULL,
    settled_cost INTEGER,
    gpu_util REAL,
    created_at INTEGER NOT NULL,
    last_seen INTEGER,
    absent_first INTEGER,
    absent_count INTEGER DEFAULT '0' NOT NULL,
    gone_at INTEGER,
    recheck_at INTEGER,
    UNIQUE (instance_id, label),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE UNIQUE INDEX one_live_lease ON leases (job_id) WHERE state = 'LIVE' AND job_id IS NOT NULL""",
    r"""CREATE TABLE metrics (
    job_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    at INTEGER NOT NULL,
    total INTEGER,
    loss REAL,
    lr REAL,
    tokens INTEGER,
    tok_s REAL,
    body TEXT NOT NULL,
    PRIMARY KEY (job_id, attempt, stage, step),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE TABLE receipts (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    folder TEXT NOT NULL,
    files TEXT NOT NULL,
    levels TEXT NOT NULL,
    level TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE TABLE stages (
    job_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    stage TEXT NOT NULL,
    nonce TEXT NOT NULL,
    fresh INTEGER DEFAULT '0' NOT NULL,
    started_at INTEGER,
    done_at INTEGER,
    done_json TEXT,
    PRIMARY KEY (job_id, attempt, stage),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE TABLE tokens (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL,
    instance_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    "by" TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    void_at INTEGER,
    used_by INTEGER,
    FOREIGN KEY(job_id) REFERENCES jobs (id)
)
 STRICT""",
    r"""CREATE TABLE attempts (
    job_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    spec_sha256 TEXT NOT NULL,
    lease_id INTEGER,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, n),
    FOREIGN KEY(job_id) REFERENCES jobs (id),
    FOREIGN KEY(lease_id) REFERENCES leases (id)
)
 STRICT""",
    r"""CREATE TABLE operations (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    job_id TEXT,
    lease_id INTEGER,
    instance_id INTEGER,
    label TEXT,
    nonce TEXT,
    stage TEXT,
    permit TEXT,
    permit_ref INTEGER,
    epoch INTEGER NOT NULL,
    request TEXT NOT NULL,
    reply_status INTEGER,
    reply TEXT,
    error TEXT,
    created_at INTEGER NOT NULL,
    sent_at INTEGER,
    resolved_at INTEGER,
    absent_count INTEGER DEFAULT '0' NOT NULL,
    absent_awake_s REAL DEFAULT '0' NOT NULL,
    FOREIGN KEY(job_id) REFERENCES jobs (id),
    FOREIGN KEY(lease_id) REFERENCES leases (id)
)
 STRICT""",
    r"""CREATE UNIQUE INDEX one_label ON operations (label) WHERE label IS NOT NULL""",
    r"""CREATE UNIQUE INDEX one_open_create ON operations (job_id) WHERE kind = 'create' AND state IN ('INTENT', 'SENT', 'UNKNOWN')""",
    r"""CREATE TABLE supersessions (
    receipt_id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (receipt_id),
    FOREIGN KEY(receipt_id) REFERENCES receipts (id)
)
 STRICT""",
]

TRIGGERS = [
    r"""CREATE TRIGGER illegal_edge BEFORE UPDATE OF state ON jobs WHEN OLD.state <> NEW.state AND NOT ((OLD.state = 'DOWNLOADED' AND NEW.state = 'ABANDONED') OR (OLD.state = 'DOWNLOADED' AND NEW.state = 'CANCELLED') OR (OLD.state = 'DOWNLOADED' AND NEW.state = 'FAILED') OR (OLD.state = 'DOWNLOADED' AND NEW.state = 'QUEUED') OR (OLD.state = 'DOWNLOADED' AND NEW.state = 'VERIFIED') OR (OLD.state = 'DPO' AND NEW.state = 'ABANDONED') OR (OLD.state = 'DPO' AND NEW.state = 'CANCELLED') OR (OLD.state = 'DPO' AND NEW.state = 'FAILED') OR (OLD.state = 'DPO' AND NEW.state = 'GGUF') OR (OLD.state = 'DPO' AND NEW.state = 'QUEUED') OR (OLD.state = 'GGUF' AND NEW.state = 'ABANDONED') OR (OLD.state = 'GGUF' AND NEW.state = 'CANCELLED') OR (OLD.state = 'GGUF' AND NEW.state = 'DOWNLOADED') OR (OLD.state = 'GGUF' AND NEW.state = 'FAILED') OR (OLD.state = 'GGUF' AND NEW.state = 'QUEUED') OR (OLD.state = 'PROVISIONED' AND NEW.state = 'ABANDONED') OR (OLD.state = 'PROVISIONED' AND NEW.state = 'CANCELLED') OR (OLD.state = 'PROVISIONED' AND NEW.state = 'DPO') OR (OLD.state = 'PROVISIONED' AND NEW.state = 'FAILED') OR (OLD.state = 'PROVISIONED' AND NEW.state = 'QUEUED') OR (OLD.state = 'PROVISIONED' AND NEW.state = 'SFT') OR (OLD.state = 'QUEUED' AND NEW.state = 'ABANDONED') OR (OLD.state = 'QUEUED' AND NEW.state = 'CANCELLED') OR (OLD.state = 'QUEUED' AND NEW.state = 'FAILED') OR (OLD.state = 'QUEUED' AND NEW.state = 'PROVISIONED') OR (OLD.state = 'SFT' AND NEW.state = 'ABANDONED') OR (OLD.state = 'SFT' AND NEW.state = 'CANCELLED') OR (OLD.state = 'SFT' AND NEW.state = 'DPO') OR (OLD.state = 'SFT' AND NEW.state = 'FAILED') OR (OLD.state = 'SFT' AND NEW.state = 'GGUF') OR (OLD.state = 'SFT' AND NEW.state = 'QUEUED') OR (OLD.state = 'VERIFIED' AND NEW.state = 'ABANDONED') OR (OLD.state = 'VERIFIED' AND NEW.state = 'CANCELLED') OR (OLD.state = 'VERIFIED' AND NEW.state = 'DESTROYED') OR (OLD.state = 'VERIFIED' AND NEW.state = 'FAILED') OR (OLD.state = 'VERIFIED' AND NEW.state = 'GGUF') OR (OLD.state = 'VERIFIED' AND NEW.state = 'QUEUED')) BEGIN SELECT RAISE(ABORT, 'illegal_edge: the lifecycle has no such edge'); END""",
    r"""CREATE TRIGGER terminal_with_machine BEFORE UPDATE OF state ON jobs WHEN NEW.state IN ('ABANDONED', 'CANCELLED', 'DESTROYED', 'FAILED') AND OLD.state <> NEW.state AND (EXISTS (SELECT 1 FROM leases l WHERE l.job_id = NEW.id AND l.state IN ('LIVE', 'LOST')) OR EXISTS (SELECT 1 FROM operations o WHERE o.job_id = NEW.id AND o.kind IN ('create', 'destroy') AND o.state IN ('INTENT', 'SENT', 'UNKNOWN'))) BEGIN SELECT RAISE(ABORT, 'terminal_with_machine: a machine of this job is rented or its fate is unknown'); END""",
    r"""CREATE TRIGGER verified_without_receipt BEFORE UPDATE OF state ON jobs WHEN NEW.state = 'VERIFIED' AND OLD.state <> 'VERIFIED' AND NOT EXISTS (SELECT 1 FROM receipts r WHERE r.job_id = NEW.id AND r.attempt = NEW.attempt AND r.manifest_sha256 = NEW.manifest_sha256 AND NOT EXISTS (SELECT 1 FROM supersessions s WHERE s.receipt_id = r.id)) BEGIN SELECT RAISE(ABORT, 'verified_without_receipt: no receipt of the current artifact set'); END""",
    r"""CREATE TRIGGER destroy_without_permit BEFORE INSERT ON operations WHEN NEW.kind = 'destroy' AND NOT coalesce((NEW.permit = 'receipt' AND EXISTS (
    SELECT 1 FROM receipts r JOIN jobs j ON j.id = r.job_id
    WHERE r.id = NEW.permit_ref AND r.job_id = NEW.job_id AND r.attempt = j.attempt
      AND r.manifest_sha256 = j.manifest_sha256
      AND NOT EXISTS (SELECT 1 FROM supersessions s WHERE s.receipt_id = r.id))) OR (NEW.permit = 'token' AND EXISTS (
    SELECT 1 FROM tokens t JOIN jobs j ON j.id = t.job_id
    WHERE t.id = NEW.permit_ref AND t.job_id = NEW.job_id AND t.instance_id = NEW.instance_id
      AND t.attempt = j.attempt AND t.void_at IS NULL AND t.used_by IS NULL AND NEW.created_at <= t.expires_at)) OR (NEW.permit = 'unused' AND NOT EXISTS (
    SELECT 1 FROM operations o
    WHERE o.kind = 'stage_start' AND o.lease_id = NEW.lease_id AND o.state IN ('INTENT', 'SENT', 'UNKNOWN', 'DONE'))), 0) BEGIN SELECT RAISE(ABORT, 'destroy_without_permit: none of the three permits holds'); END""",
    r"""CREATE TRIGGER destroy_sent_without_permit BEFORE UPDATE OF state ON operations WHEN NEW.kind = 'destroy' AND NEW.state = 'SENT' AND OLD.state = 'INTENT' AND NOT coalesce((NEW.permit = 'receipt' AND EXISTS (
    SELECT 1 FROM receipts r JOIN jobs j ON j.id = r.job_id
    WHERE r.id = NEW.permit_ref AND r.job_id = NEW.job_id AND r.attempt = j.attempt
      AND r.manifest_sha256 = j.manifest_sha256
      AND NOT EXISTS (SELECT 1 FROM supersessions s WHERE s.receipt_id = r.id))) OR (NEW.permit = 'token' AND EXISTS (
    SELECT 1 FROM tokens t JOIN jobs j ON j.id = t.job_id
    WHERE t.id = NEW.permit_ref AND t.job_id = NEW.job_id AND t.instance_id = NEW.instance_id
      AND t.attempt = j.attempt AND t.void_at IS NULL AND (t.used_by IS NULL OR t.used_by = NEW.id) AND NEW.created_at <= t.expires_at)) OR (NEW.permit = 'unused' AND NOT EXISTS (
    SELECT 1 FROM operations o
    WHERE o.kind = 'stage_start' AND o.lease_id = NEW.lease_id AND o.state IN ('INTENT', 'SENT', 'UNKNOWN', 'DONE'))), 0) BEGIN SELECT RAISE(ABORT, 'destroy_sent_without_permit: none of the three permits holds any more'); END""",
    r"""CREATE TRIGGER destroy_of_another BEFORE INSERT ON operations WHEN NEW.kind = 'destroy' AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.id = NEW.lease_id AND l.instance_id = NEW.instance_id AND l.job_id IS NEW.job_id) BEGIN SELECT RAISE(ABORT, 'destroy_of_another: the instance is not this lease of this job'); END""",
    r"""CREATE TRIGGER stage_on_unused_destroy BEFORE INSERT ON operations WHEN NEW.kind = 'stage_start' AND EXISTS (SELECT 1 FROM operations o WHERE o.kind = 'destroy' AND o.lease_id = NEW.lease_id AND o.state <> 'ABSENT' AND o.state <> 'REFUSED') BEGIN SELECT RAISE(ABORT, 'stage_on_unused_destroy: a destroy of this lease exists'); END""",
    r"""CREATE TRIGGER create_while_rented BEFORE INSERT ON operations WHEN NEW.kind = 'create' AND EXISTS (SELECT 1 FROM leases l WHERE l.job_id = NEW.job_id AND l.state = 'LIVE') BEGIN SELECT RAISE(ABORT, 'create_while_rented: the job has a machine'); END""",
    r"""CREATE TRIGGER operation_backwards BEFORE UPDATE OF state ON operations WHEN OLD.state <> NEW.state AND NOT ((OLD.state = 'INTENT' AND NEW.state IN ('SENT', 'ABSENT')) OR (OLD.state = 'SENT' AND NEW.state IN ('DONE', 'REFUSED', 'UNKNOWN')) OR (OLD.state = 'UNKNOWN' AND NEW.state IN ('DONE', 'ABSENT')) OR (OLD.state = 'ABSENT' AND NEW.state = 'DONE')) BEGIN SELECT RAISE(ABORT, 'operation_backwards: operations only move forward'); END""",
    r"""CREATE TRIGGER spec_is_immutable BEFORE UPDATE OF spec_text, spec_json, spec_sha256 ON jobs WHEN OLD.spec_text <> NEW.spec_text OR OLD.spec_json <> NEW.spec_json OR OLD.spec_sha256 <> NEW.spec_sha256 BEGIN SELECT RAISE(ABORT, 'spec_is_immutable: a stored spec is never changed'); END""",
    r"""CREATE TRIGGER token_single_use BEFORE UPDATE ON tokens WHEN OLD.used_by IS NOT NULL AND NEW.used_by IS NOT OLD.used_by BEGIN SELECT RAISE(ABORT, 'token_single_use: the token was used'); END""",
    r"""CREATE TRIGGER events_update BEFORE UPDATE ON events WHEN 1 BEGIN SELECT RAISE(ABORT, 'events_update: append-only'); END""",
    r"""CREATE TRIGGER events_delete BEFORE DELETE ON events WHEN 1 BEGIN SELECT RAISE(ABORT, 'events_delete: append-only'); END""",
    r"""CREATE TRIGGER receipts_update BEFORE UPDATE ON receipts WHEN 1 BEGIN SELECT RAISE(ABORT, 'receipts_update: append-only'); END""",
    r"""CREATE TRIGGER receipts_delete BEFORE DELETE ON receipts WHEN 1 BEGIN SELECT RAISE(ABORT, 'receipts_delete: append-only'); END""",
    r"""CREATE TRIGGER supersessions_update BEFORE UPDATE ON supersessions WHEN 1 BEGIN SELECT RAISE(ABORT, 'supersessions_update: append-only'); END""",
    r"""CREATE TRIGGER supersessions_delete BEFORE DELETE ON supersessions WHEN 1 BEGIN SELECT RAISE(ABORT, 'supersessions_delete: append-only'); END""",
]


def upgrade() -> None:
    for statement in (*TABLES, *TRIGGERS):
        op.get_bind().exec_driver_sql(statement)
