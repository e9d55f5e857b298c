"""The read model: what the database says, for the API's routes and for `jobctl` when the daemon is down.

Standard library sqlite3, opened read-only: nothing here can change a row, take the writer's lock or import SQLAlchemy.
Every function is a few queries whatever the number of jobs: job_rows.py gathers what is stored of each, and views.py
decides what it means.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from daemon.domain import money, scores
from daemon.domain.lifecycle import TERMINAL
from daemon.domain.news import UNLISTED_MS
from daemon.errors import Damaged, NoSuchJob
from daemon.store import attention, views
from daemon.store.job_rows import JobRows, cost_so_far, gather, is_billing, meta, open_operations, rate
from daemon.store.shapes import (
    CURRENCY,
    UNSURE,
    Attention,
    Event,
    Events,
    JobPage,
    Jobs,
    JobView,
    Leases,
    LeaseView,
    Log,
    Metric,
    Metrics,
    MoneyStrip,
    Move,
    iso,
)
from daemon.store.sqlite_errors import unusable

EVENTS_PAGE = 500  # rows
METRICS_PAGE = 2_000  # rows
LOG_PAGE = 256 << 10  # bytes
LOG_NAME = "log.txt"  # as on the box
RECENT_EVENTS = 6
DAY_MS = 86_400_000
LOSS_POINTS = 40


@dataclass(frozen=True)
class ReadModel:
    """Every reading, straight from the files of one installation. `ref` is an id, a unique prefix, a name or @last.

    Raises StoreError when the database cannot be read, NoSuchJob when `ref` means none or several.
    """

    database: Path
    job_folders: Path

    def jobs(self) -> Jobs:
        """Every job, newest first."""
        with connection(self.database) as db:
            now = now_ms()
            found = [views.job_view(rows, now) for rows in gather(db)]
            return Jobs(
                schema="homeport.jobs/1",
                jobs=found,
                money=money_strip(db, now),
                attention=self._attention(db, found, _leases(db, now), now),
            )

    def job(self, ref: str) -> JobPage:
        with connection(self.database) as db:
            now, job = now_ms(), resolve(db, ref)
            (rows,) = gather(db, job)
            view = views.job_view(rows, now)
            return JobPage(
                schema="homeport.job/1",
                job=view,
                moves=_moves(db, view),
                recent=_recent_events(db, job),
                losses=_losses(db, rows),
                scores=_scores(rows),
                delivery=_delivery(db, job),
                money=money_strip(db, now),
            )

    def events(self, ref: str, after: int) -> Events:
        """Events with id > `after`, oldest first, at most one page: ask again with the last id."""
        with connection(self.database) as db:
            job = resolve(db, ref)
            query = "SELECT * FROM events WHERE job_id = ? AND id > ? ORDER BY id LIMIT ?"
            rows = db.execute(query, (job, after, EVENTS_PAGE)).fetchall()
        return Events(schema="homeport.events/1", job=job, events=[_event(row) for row in rows])

    def metrics(self, ref: str, after: int) -> Metrics:
        """Steps with cursor > `after`, in order of arrival, at most one page: ask again with the last cursor."""
        with connection(self.database) as db:
            job = resolve(db, ref)
            query = "SELECT rowid AS cursor, * FROM metrics WHERE job_id = ? AND rowid > ? ORDER BY rowid LIMIT ?"
            rows = db.execute(query, (job, after, METRICS_PAGE)).fetchall()
        return Metrics(schema="homeport.metrics/1", job=job, metrics=[_metric(row) for row in rows])

    def log(self, ref: str, offset: int) -> Log:
        """What the stages printed, from byte `offset`, from the end when negative. A log not here yet is empty."""
        with connection(self.database) as db:
            job = resolve(db, ref)
        text, following = _log_page(self.job_folders / job / LOG_NAME, offset)
        return Log(schema="homeport.log/1", job=job, text=text, offset=following)

    def leases(self) -> Leases:
        """Every machine ever rented that we know of: those that may bill first, then the newest."""
        with connection(self.database) as db:
            now = now_ms()
            found = [views.job_view(rows, now) for rows in gather(db)]
            machines = _leases(db, now)
            needed = self._attention(db, found, machines, now)
            return Leases(
                schema="homeport.leases/1",
                leases=machines,
                money=money_strip(db, now),
                attention=[each for each in needed if each["instance"] or not each["job"] or each["kind"] in UNSURE],
            )

    def money(self) -> MoneyStrip:
        with connection(self.database) as db:
            return money_strip(db, now_ms())

    def _attention(
        self, db: sqlite3.Connection, found: list[JobView], machines: list[LeaseView], now: int
    ) -> list[Attention]:
        home = [*_exported(db), *_unlisted(db, found, machines, now)]
        return [*home, *attention.needed(found, machines, _written_off(db, now), self.database.parent)]

    def resolve(self, ref: str) -> str:
        with connection(self.database) as db:
            return resolve(db, ref)


@contextmanager
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection in one read transaction, so that every query sees the same moment. Raises StoreError."""
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def resolve(db: sqlite3.Connection, ref: str) -> str:
    """The id that `ref` means: an id, `@last`, a name (unfinished jobs before finished ones), a unique prefix of an id.

    Raises NoSuchJob when there is none, or several: then it lists them.
    """
    rows = db.execute("SELECT id, name, state FROM jobs ORDER BY rowid DESC").fetchall()  # a set clock changes nothing
    if ref == "@last" and rows:
        return str(rows[0]["id"])
    named = [row for row in rows if row["name"] == ref]
    choices = (
        [row for row in rows if row["id"] == ref],
        [row for row in named if row["state"] not in TERMINAL],
        named,
        [row for row in rows if ref and row["id"].startswith(ref.lower())],
    )
    matching = next((rows for rows in choices if rows), [])
    if not matching:
        raise NoSuchJob(f"no job {ref!r}", hint="jobctl status")
    if len(matching) > 1:
        listed = ", ".join(f"{row['id']} ({row['name']}, {row['state']})" for row in matching)
        raise NoSuchJob(f"{ref!r} is ambiguous: {listed}", hint="give the id")
    return str(matching[0]["id"])


def money_strip(db: sqlite3.Connection, now: int) -> MoneyStrip:
    """How many machines may bill, what they cost by the hour and so far, and how long the credit lasts."""
    billing = [row for row in db.execute("SELECT * FROM leases") if is_billing(row)]
    burn = sum(rate(row) for row in billing)
    credit, listed = meta(db, "credit"), meta(db, "last_listing")
    creates = sum(op["kind"] == "create" for op in open_operations(db))
    return MoneyStrip(
        machines=len(billing),
        unsure=creates + len(_written_off(db, now)),
        rate=money.decimal_string(burn),
        cost=money.decimal_string(sum(cost_so_far(row, now) for row in billing)),
        credit=None if credit is None else money.decimal_string(credit),
        hours_left=round(credit / burn, 1) if credit is not None and burn else None,
        currency=CURRENCY,
        as_of=iso(listed),
        problem=_problem(db),
        kept_awake=_kept_awake(db),
    )


def integrity(path: Path) -> str:
    """SQLite's own quick check: 'ok', or the damage. Raises StoreError when the file is only not to be had just now."""
    try:
        with connection(path) as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone() is None:
                return "it has no table of jobs"  # an empty file is whole to SQLite
            return str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except Damaged as error:
        return str(error.__cause__)


def _exported(db: sqlite3.Connection) -> list[Attention]:
    """Whether the jobs live elsewhere now (control/moving.py)."""
    noted = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('moved', 'moved_to')").fetchall())
    return [attention.of_export(noted.get("moved_to"))] if noted.get("moved") else []


def _unlisted(db: sqlite3.Connection, found: list[JobView], machines: list[LeaseView], now: int) -> list[Attention]:
    """Whether something waits for the market's word, and no listing could be trusted for long."""
    since, problem = meta(db, "unlisted_since"), _problem(db)
    bills = any(lease["state"] in ("LIVE", "LOST") for lease in machines)
    waits = bills or any(job["state"] not in TERMINAL and job["hold"] is None for job in found)
    if since is None or problem is None or not waits or now - since < UNLISTED_MS:
        return []
    return [attention.of_market(iso(since) or "", problem)]


def _kept_awake(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM meta WHERE key = 'kept_awake' AND value <> ''").fetchone() is not None


def _problem(db: sqlite3.Connection) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key = 'last_probe_error' AND value <> ''").fetchone()
    return None if row is None else str(row["value"])


def _leases(db: sqlite3.Connection, now: int) -> list[LeaseView]:
    rows = db.execute("SELECT * FROM leases ORDER BY state IN ('LIVE', 'LOST') DESC, id DESC").fetchall()
    operations = open_operations(db)
    return [views.lease_view(row, operations, now) for row in rows]


def _written_off(db: sqlite3.Connection, now: int) -> list[LeaseView]:
    """Those that may bill still: until the market's listings have been without them for a day."""
    query = "SELECT * FROM leases WHERE state = 'WRITTEN_OFF' AND max(coalesce(last_seen, 0), gone_at) > ? ORDER BY id"
    rows = db.execute(query, ((meta(db, "last_listing") or 0) - DAY_MS,)).fetchall()
    return [views.lease_view(row, (), now) for row in rows]


def _moves(db: sqlite3.Connection, job: JobView) -> list[Move]:
    rows = db.execute("SELECT at, body FROM events WHERE job_id = ? AND kind = 'job.moved' ORDER BY id", (job["id"],))
    later = [Move(state=json.loads(row["body"])["to"], at=iso(row["at"]) or "") for row in rows]
    return [Move(state="QUEUED", at=job["created_at"]), *later]


def _recent_events(db: sqlite3.Connection, job: str) -> list[Event]:
    rows = db.execute("SELECT * FROM events WHERE job_id = ? ORDER BY id DESC LIMIT ?", (job, RECENT_EVENTS)).fetchall()
    return [_event(row) for row in reversed(rows)]


def _losses(db: sqlite3.Connection, rows: JobRows) -> list[float]:
    if not rows.metrics:
        return []
    query = "SELECT loss FROM metrics WHERE job_id = ? AND attempt = ? AND stage = ? AND loss IS NOT NULL ORDER BY step"
    of = (rows.job["id"], rows.job["attempt"], rows.metrics[-1]["stage"])
    losses = [row["loss"] for row in db.execute(query, of)]
    return losses[:: max(1, len(losses) // LOSS_POINTS)]


def _scores(rows: JobRows) -> list[str]:
    evaluation = rows.spec.get("eval") or {}
    names = {"base": rows.spec["model"], "compared": evaluation.get("compare_to") or scores.COMPARED}
    return list(scores.told(json.loads(rows.job["manifest_json"] or "{}").get("scores", ()), names))


def _delivery(db: sqlite3.Connection, job: str) -> list[str]:
    """In order: the newest choice, and what came of it."""
    query = "SELECT kind, body FROM events WHERE job_id = ? AND kind IN (?, ?, ?) ORDER BY id"
    told: list[str] = []
    for kind, text in db.execute(query, (job, "deliver.chosen", "rebuild.failed", "rebuild.compared")):
        body = json.loads(text)
        if kind == "deliver.chosen":
            told = [f"{body['way']}: {body['why']}"]
        elif kind == "rebuild.failed":
            told.append(f"not rebuilt: {body['why']}")
        else:
            told.append(f"{body['quant']}: {body['agreeing']:,} of {body['size']:,} bytes rebuilt here")
    return told


def _event(row: sqlite3.Row) -> Event:
    return Event(
        id=row["id"],
        at=iso(row["at"]) or "",
        kind=row["kind"],
        by=row["by"],
        job=row["job_id"],
        lease=row["lease_id"],
        body=json.loads(row["body"]),
    )


def _metric(row: sqlite3.Row) -> Metric:
    return Metric(
        cursor=row["cursor"],
        attempt=row["attempt"],
        stage=row["stage"],
        step=row["step"],
        total=row["total"],
        at=iso(row["at"]) or "",
        loss=row["loss"],
        lr=row["lr"],
        tokens=row["tokens"],
        tok_s=row["tok_s"],
        body=json.loads(row["body"]),
    )


def _log_page(file: Path, offset: int) -> tuple[str, int]:
    """(text, where the next page begins); whole lines, as long as a page holds one."""
    if not file.exists():
        return "", 0
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        stream.seek(start)
        page = stream.read(LOG_PAGE)
    if len(page) == LOG_PAGE:
        page = page[: page.rfind(b"\n") + 1] or page
    return page.decode("utf-8", "replace"), start + len(page)
