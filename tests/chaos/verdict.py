"""What a run must have come to, whatever befell it: facts in, broken promises out. Pure.

Machines and requests are the market's own word, never the daemon's. No rule knows of a length of time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

DEFECTS = ("job.crashed", "reconcile.crashed", "store.unusable")  # what the log says when code of ours is wrong


@dataclass(frozen=True)
class Ending:
    """`machines` and `requests`: the market's ledger and journal; `events`: the job's; times in unix seconds.

    `expected_sha256` is empty in the run from which it is learned.
    """

    state: str
    hold: str
    jobs: int
    open_operations: int
    integrity: str
    model_sha256: str
    expected_sha256: str
    machines: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    events: list[dict[str, Any]]
    log: str


def broken(e: Ending) -> list[str]:
    """One line for each promise that was not kept."""
    is_other = not e.model_sha256 or e.expected_sha256 not in ("", e.model_sha256)
    found = [
        (e.state != "DESTROYED", f"ended as {e.state}{f' HELD({e.hold})' if e.hold else ''}, not DESTROYED"),
        (e.jobs != 1, f"{e.jobs} jobs instead of one"),
        (e.open_operations > 0, f"{e.open_operations} operations are still open"),
        (e.integrity != "ok", f"the database is damaged: {e.integrity}"),
        (is_other, f"another model: {e.model_sha256 or 'none'}"),
    ]
    lines = [line for is_broken, line in found if is_broken]
    return lines + _rented(e) + _returned(e) + [f"the log says {word}" for word in DEFECTS if word in e.log]


def _rented(e: Ending) -> list[str]:
    """One machine did the work; no create was sent twice; whatever else was rented was never worked on, nor beside it.

    No host is away for long enough to be given up, and the market shows what it let at once: so there is never a second
    machine while there is one.
    """
    labels = Counter(r["body"]["label"] for r in e.requests if r["method"] == "PUT" and "/asks/" in r["path"])
    worked = _worked(e)
    lines = [f"create {label} was sent {n} times" for label, n in labels.items() if n > 1]
    lines += [
        f"machine {later['id']} was rented beside machine {earlier['id']}"
        for earlier, later in pairwise(sorted(e.machines, key=lambda machine: machine["created_at"]))
        if (earlier["destroyed_at"] or math.inf) > later["created_at"]
    ]
    return lines + ([] if len(worked) == 1 else [f"work was started on {len(worked)} machines: {sorted(worked)}"])


def _returned(e: Ending) -> list[str]:
    """Every machine is gone when the job ends; that of the work by its receipt and after it, any other as unused."""
    lines = []
    ended = [event["at"] / 1000 for event in e.events if event["kind"] == "job.moved" and event["to"] == "DESTROYED"]
    stored = [event["at"] / 1000 for event in e.events if event["kind"] == "receipt.stored"]
    for machine in e.machines:
        instance, worked = machine["id"], machine["id"] in _worked(e)
        permits = {x["permit"] for x in e.events if x["kind"] == "destroy.intent" and x["instance_id"] == instance}
        asked = [
            r["t"] for r in e.requests
            if r["method"] == "DELETE" and re.fullmatch(rf"/api/v0/instances/{instance}/?", r["path"])
        ]  # fmt: skip
        if machine["destroyed_at"] is None:
            lines.append(f"machine {instance} still bills")
        elif any(machine["destroyed_at"] > at for at in ended):
            lines.append(f"machine {instance} billed on after the job was called DESTROYED")
        if permits != {"receipt" if worked else "unused"}:
            lines.append(f"machine {instance}, {'worked on' if worked else 'unused'}, let go by {sorted(permits)}")
        if worked and (not stored or any(at < stored[0] for at in asked)):
            lines.append(f"machine {instance} was asked to go before the receipt")
    return lines


def _worked(e: Ending) -> set[int]:
    return {event["instance_id"] for event in e.events if event["kind"] == "stage_start.intent"}
