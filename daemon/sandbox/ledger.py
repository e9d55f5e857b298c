"""The sandbox's own truth, in one SQLite file: account, keys, instances, their intervals, every request.

It knows nothing of any database of the daemon; it is what the tests believe. Everything is written before the reply
that tells of it, so a killed sandbox started again on the same directory goes on where it was.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .billing import Cost, Interval, cost
from .instances import Instance, Key, Rates
from .traffic import Traffic

FIRST_INSTANCE_ID = 7_000_001
OPENING_CREDIT = 100.0  # dollars

TABLES = """
CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS account_keys (
    id INTEGER PRIMARY KEY, public_key TEXT NOT NULL, created_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS instances (
    id INTEGER PRIMARY KEY, record TEXT NOT NULL,
    bytes_in INTEGER NOT NULL DEFAULT 0, bytes_out INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS intervals (
    instance INTEGER NOT NULL REFERENCES instances, state TEXT NOT NULL, start REAL NOT NULL, stop REAL
) STRICT;
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY, t REAL NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL, query TEXT NOT NULL,
    body TEXT NOT NULL, status INTEGER, effect TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS journal_keeps BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS journal_stays BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


class Ledger:
    """One writer, one process; instances are kept in memory as well, since every request and tick reads them."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; power cuts are out of scope
        self._db.executescript(TABLES)
        self._instances = {
            i: _instance(json.loads(r)) for i, r in self._db.execute("SELECT id, record FROM instances ORDER BY id")
        }
        self.api_key = self._once("api_key", "sandbox-" + secrets.token_hex(24))
        self.opening_credit = float(self._once("opening_credit", str(OPENING_CREDIT)))

    def close(self) -> None:
        self._db.close()

    def _once(self, name: str, value: str) -> str:
        self._db.execute("INSERT OR IGNORE INTO account VALUES (?, ?)", (name, value))
        return self.remembered(name) or value

    def remembered(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM account WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO account VALUES (?, ?)", (name, value))

    # Instances

    def all(self) -> list[Instance]:
        """Every instance that ever was, oldest first."""
        return list(self._instances.values())

    def existing(self) -> Iterator[Instance]:
        """The instances whose rows the market may still list, each as it is when its turn comes."""
        for instance_id in list(self._instances):
            if not self._instances[instance_id].gone:
                yield self._instances[instance_id]

    def get(self, instance_id: int) -> Instance | None:
        return self._instances.get(instance_id)

    def next_id(self) -> int:
        return max(self._instances, default=FIRST_INSTANCE_ID - 1) + 1

    def save(self, instance: Instance, now: float) -> None:
        """Store a whole instance and, when it is billed otherwise from `now` on, its new interval. One transaction."""
        before = self._instances.get(instance.id, instance)
        repriced = before.gpu_hour(now) != instance.gpu_hour(now)
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.execute(
                "INSERT INTO instances (id, record) VALUES (?, ?)"
                " ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                (instance.id, json.dumps(asdict(instance))),
            )
            state = instance.billed_as(now)
            open_state = self._db.execute(
                "SELECT state FROM intervals WHERE instance = ? AND stop IS NULL", (instance.id,)
            ).fetchone()
            if repriced or (open_state[0] if open_state else None) != state:
                self._db.execute(
                    "UPDATE intervals SET stop = ? WHERE instance = ? AND stop IS NULL", (now, instance.id)
                )
                if state is not None:
                    self._db.execute("INSERT INTO intervals VALUES (?, ?, ?, NULL)", (instance.id, state, now))
        self._instances[instance.id] = instance

    def change(self, instance_id: int, **fields: Any) -> Instance:
        """Change fields of an instance as it is stored now: whoever waited meanwhile loses nobody else's change."""
        instance = replace(self._instances[instance_id], **fields)
        self.save(instance, time.time())
        return instance

    def set_traffic(self, instance_id: int, traffic: Traffic) -> None:
        self._db.execute(
            "UPDATE instances SET bytes_in = ?, bytes_out = ? WHERE id = ? AND (bytes_in <> ? OR bytes_out <> ?)",
            (traffic.bytes_in, traffic.bytes_out, instance_id, traffic.bytes_in, traffic.bytes_out),
        )

    # Money

    def traffic(self, instance_id: int) -> Traffic:
        row = self._db.execute("SELECT bytes_in, bytes_out FROM instances WHERE id = ?", (instance_id,)).fetchone()
        return Traffic(*row)

    def intervals(self, instance: Instance) -> list[Interval]:
        rows = self._db.execute(
            "SELECT state, start, stop FROM intervals WHERE instance = ? ORDER BY rowid", (instance.id,)
        )
        return [Interval(state, start, stop, instance.gpu_hour(start)) for state, start, stop in rows]

    def cost(self, instance: Instance, now: float) -> Cost:
        traffic = self.traffic(instance.id)
        return cost(self.intervals(instance), instance.rates, traffic.bytes_in, traffic.bytes_out, now)

    def credit(self, now: float) -> float:
        """Prepaid dollars left; disks go on billing into the negative."""
        drawn = float(self.remembered("drawn") or 0.0)
        return self.opening_credit - drawn - sum(self.cost(i, now).total for i in self.all())

    def set_credit(self, left: float, now: float) -> None:
        """Have `left` dollars left at `now`, by money drawn from or paid into the account."""
        drawn = float(self.remembered("drawn") or 0.0)
        self.remember("drawn", str(drawn + self.credit(now) - left))

    # Account keys

    def account_keys(self) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT id, public_key, created_at FROM account_keys ORDER BY id")
        return [
            {"id": i, "user_id": 1, "public_key": k, "key": k, "created_at": t, "deleted_at": None} for i, k, t in rows
        ]

    def add_account_key(self, public_key: str, now: float) -> int:
        cursor = self._db.execute("INSERT INTO account_keys (public_key, created_at) VALUES (?, ?)", (public_key, now))
        return int(cursor.lastrowid or 0)

    def delete_account_key(self, key_id: int) -> bool:
        return self._db.execute("DELETE FROM account_keys WHERE id = ?", (key_id,)).rowcount > 0

    # Requests

    def journal(
        self, t: float, method: str, path: str, query: dict[str, str], body: Any, status: int | None, effect: str
    ) -> None:
        """Append one request. `status` None: nobody was answered."""
        self._db.execute(
            "INSERT INTO journal (t, method, path, query, body, status, effect) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (t, method, path, json.dumps(query), json.dumps(body), status, effect),
        )

    def requests(self) -> Iterator[dict[str, Any]]:
        rows = self._db.execute("SELECT seq, t, method, path, query, body, status, effect FROM journal ORDER BY seq")
        for seq, t, method, path, query, body, status, effect in rows:
            yield {"seq": seq, "t": t, "method": method, "path": path, "query": json.loads(query),
                   "body": json.loads(body), "status": status, "effect": effect}  # fmt: skip


def _instance(record: dict[str, Any]) -> Instance:
    ports = record.pop("ports")
    return Instance(
        **{
            **record,
            "rates": Rates(**record["rates"]),
            "keys": tuple(Key(**key) for key in record["keys"]),
            "bids": tuple((since, price) for since, price in record.get("bids", ())),
            "ports": None if ports is None else (ports[0], ports[1]),
        }
    )
