"""Rules the database itself keeps, whoever writes to it: generated from the lifecycle table where they can be.

Each name below is a rule; tests/unit/test_triggers.py shows each of them firing against raw SQL.
"""

from __future__ import annotations

from daemon.domain.lifecycle import EDGES, TERMINAL

STARTED = "('SENT', 'UNKNOWN', 'DONE')"
OPEN = "('INTENT', 'SENT', 'UNKNOWN')"
APPEND_ONLY = ("events", "receipts", "supersessions")
_TERMINAL = ", ".join(f"'{s}'" for s in sorted(TERMINAL))


def _abort(name: str, when: str, condition: str, message: str) -> str:
    return f"CREATE TRIGGER {name} {when} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{name}: {message}'); END"


def _edges() -> str:
    pairs = sorted({(e.source.value, e.target.value) for e in EDGES})
    return " OR ".join(f"(OLD.state = '{a}' AND NEW.state = '{b}')" for a, b in pairs)


# The three facts that permit a destroy, each against the operation row `NEW`.
_RECEIPT = """(NEW.permit = 'receipt' AND EXISTS (
    SELECT 1 FROM receipts r JOIN jobs j ON j.id = r.job_id
    WHERE r.id = NEW.permit_ref AND r.job_id = NEW.job_id AND r.attempt = j.attempt
      AND r.manifest_sha256 = j.manifest_sha256
      AND NOT EXISTS (SELECT 1 FROM supersessions s WHERE s.receipt_id = r.id)))"""
_TYPED = """(NEW.permit = 'token' AND EXISTS (
    SELECT 1 FROM tokens t JOIN jobs j ON j.id = t.job_id
    WHERE t.id = NEW.permit_ref AND t.job_id = NEW.job_id AND t.instance_id = NEW.instance_id
      AND t.attempt = j.attempt AND t.void_at IS NULL AND t.used_by IS NULL AND NEW.created_at <= t.expires_at))"""
_UNUSED = """(NEW.permit = 'unused' AND NOT EXISTS (
    SELECT 1 FROM operations o
    WHERE o.kind = 'stage_start' AND o.lease_id = NEW.lease_id AND o.state IN ('INTENT', 'SENT', 'UNKNOWN', 'DONE')))"""

TRIGGERS: dict[str, str] = {
    "illegal_edge": _abort(
        "illegal_edge",
        "BEFORE UPDATE OF state ON jobs",
        f"OLD.state <> NEW.state AND NOT ({_edges()})",
        "the lifecycle has no such edge",
    ),
    "terminal_with_machine": _abort(
        "terminal_with_machine",
        "BEFORE UPDATE OF state ON jobs",
        f"NEW.state IN ({_TERMINAL}) AND OLD.state <> NEW.state AND (EXISTS (SELECT 1 FROM leases l "  # noqa: S608
        "WHERE l.job_id = NEW.id AND l.state IN ('LIVE', 'LOST')) OR EXISTS (SELECT 1 FROM operations o "
        f"WHERE o.job_id = NEW.id AND o.kind IN ('create', 'destroy') AND o.state IN {OPEN}))",
        "a machine of this job is rented or its fate is unknown",
    ),
    "verified_without_receipt": _abort(
        "verified_without_receipt",
        "BEFORE UPDATE OF state ON jobs",
        "NEW.state = 'VERIFIED' AND OLD.state <> 'VERIFIED' AND NOT EXISTS (SELECT 1 FROM receipts r "
        "WHERE r.job_id = NEW.id AND r.attempt = NEW.attempt AND r.manifest_sha256 = NEW.manifest_sha256 "
        "AND NOT EXISTS (SELECT 1 FROM supersessions s WHERE s.receipt_id = r.id))",
        "no receipt of the current artifact set",
    ),
    "destroy_without_permit": _abort(
        "destroy_without_permit",
        "BEFORE INSERT ON operations",
        f"NEW.kind = 'destroy' AND NOT coalesce({_RECEIPT} OR {_TYPED} OR {_UNUSED}, 0)",
        "none of the three permits holds",
    ),
    # The facts once more when it goes out: a permit can lose its ground between INTENT and SENT.
    "destroy_sent_without_permit": _abort(
        "destroy_sent_without_permit",
        "BEFORE UPDATE OF state ON operations",
        f"NEW.kind = 'destroy' AND NEW.state = 'SENT' AND OLD.state = 'INTENT' AND NOT coalesce({_RECEIPT} OR "
        f"{_TYPED.replace('t.used_by IS NULL', '(t.used_by IS NULL OR t.used_by = NEW.id)')} OR {_UNUSED}, 0)",
        "none of the three permits holds any more",
    ),
    "destroy_of_another": _abort(
        "destroy_of_another",
        "BEFORE INSERT ON operations",
        "NEW.kind = 'destroy' AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.id = NEW.lease_id "
        "AND l.instance_id = NEW.instance_id AND l.job_id IS NEW.job_id)",
        "the instance is not this lease of this job",
    ),
    "stage_on_unused_destroy": _abort(
        "stage_on_unused_destroy",
        "BEFORE INSERT ON operations",
        "NEW.kind = 'stage_start' AND EXISTS (SELECT 1 FROM operations o WHERE o.kind = 'destroy' "
        "AND o.lease_id = NEW.lease_id AND o.state <> 'ABSENT' AND o.state <> 'REFUSED')",
        "a destroy of this lease exists",
    ),
    "create_while_rented": _abort(
        "create_while_rented",
        "BEFORE INSERT ON operations",
        "NEW.kind = 'create' AND EXISTS (SELECT 1 FROM leases l WHERE l.job_id = NEW.job_id AND l.state = 'LIVE')",
        "the job has a machine",
    ),
    "operation_backwards": _abort(
        "operation_backwards",
        "BEFORE UPDATE OF state ON operations",
        "OLD.state <> NEW.state AND NOT ((OLD.state = 'INTENT' AND NEW.state IN ('SENT', 'ABSENT')) OR "
        "(OLD.state = 'SENT' AND NEW.state IN ('DONE', 'REFUSED', 'UNKNOWN')) OR "
        # A late arrival turns even an ABSENT create into a DONE one.
        "(OLD.state = 'UNKNOWN' AND NEW.state IN ('DONE', 'ABSENT')) OR (OLD.state = 'ABSENT' AND NEW.state = 'DONE'))",
        "operations only move forward",
    ),
    "spec_is_immutable": _abort(
        "spec_is_immutable",
        "BEFORE UPDATE OF spec_text, spec_json, spec_sha256 ON jobs",
        "OLD.spec_text <> NEW.spec_text OR OLD.spec_json <> NEW.spec_json OR OLD.spec_sha256 <> NEW.spec_sha256",
        "a stored spec is never changed",
    ),
    "token_single_use": _abort(
        "token_single_use",
        "BEFORE UPDATE ON tokens",
        "OLD.used_by IS NOT NULL AND NEW.used_by IS NOT OLD.used_by",
        "the token was used",
    ),
    **{
        f"{table}_{verb}": _abort(f"{table}_{verb}", f"BEFORE {verb.upper()} ON {table}", "1", "append-only")
        for table in APPEND_ONLY
        for verb in ("update", "delete")
    },
}
