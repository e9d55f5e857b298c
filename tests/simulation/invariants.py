"""The promises as invariants: what must hold whatever happens, and where each is checked.

`decision`: in the model of rows, against the ledger of its fakes (decision/checks.py). `full`: on the real store with
crashes at every boundary. Else the test that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Invariant:
    id: str
    statement: str
    where: tuple[str, ...]


INVARIANTS = tuple(
    Invariant(name, statement, tuple(where.split(", ")))
    for name, statement, where in (
        ("I1", "a machine on which work began is destroyed only with its model proven here, or its id typed",
         "decision, full"),
        ("I2", "no receipt without a proof of exactly that manifest, read from this disk and durable on it",
         "decision, full"),
        ("I3", "one LIVE lease or open create a job; a LOST machine that comes back is stopped in one pass",
         "decision, full"),
        ("I4", "whatever of ours bills is known to a lease, an open operation or an orphan report", "decision, full"),
        ("I5", "no job ends while something of it bills, unless written off", "decision, full"),
        ("I6", "no create leaves before its intent is durable", "decision, full"),
        ("I7", "no label is sent twice", "decision, full"),
        ("I8", "the state goes back only by a person's retry or by a lost artifact", "decision, full"),
        ("I9", "replaying the events yields state, hold and attempt", "full"),
        ("I10", "recorded cost never falls, and is never below the market's by more than 1 %", "decision, full"),
        ("I11", "a hold, and an absence, cost limits.hold beyond the work at most", "decision, full"),
        ("I12", "nothing is written or sent under an old epoch, and a restored database waits for its person", "full"),
        ("I13", "no account-wide secret leaves for a box, a log or an event",
         "full, tests/integration/test_vast.py"),
        ("I14", "a stage reaches the runner once a nonce", "full, tests/payload/test_run.py"),
        ("I15", "only a done.json of its own nonce ends a stage, and only the box's word fails one", "full"),
        ("I16", "a create is given up after listings that ran and time awake, never by sleep", "decision, full"),
        ("I17", "an untrusted listing changes no row", "decision, full"),
        ("I18", "what is not ours is never changed", "decision, full"),
        ("I19", "no job is ended that nobody asked to end", "decision, full"),
        ("I20", "a file under its final name is whole and proven", "full"),
        ("I21", "too little room blocks renting, and nothing that saves", "tests/acceptance/test_mistakes.py"),
        ("I22", "every wait and hold has a reason, and nothing is decided that the lifecycle forbids",
         "decision, full"),
        ("I23", "once faults stop, every job ends or is held, and every destroy is followed to its end",
         "decision, full"),
        ("I24", "after any crash the ledger and the artifact end as without it", "full"),
    )
)  # fmt: skip
