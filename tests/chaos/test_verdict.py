"""The verdict: a kept run has nothing to say, and each broken promise has its line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.verdict import Ending, broken

KEPT = Ending(
    state="DESTROYED",
    hold="",
    jobs=1,
    open_operations=0,
    integrity="ok",
    model_sha256="abc",
    expected_sha256="abc",
    machines=[{"id": 1, "created_at": 4.0, "destroyed_at": 20.0}],
    requests=[
        {"method": "PUT", "path": "/api/v0/asks/9/", "t": 1.0, "body": {"label": "hp-a"}},
        {"method": "DELETE", "path": "/api/v0/instances/1/", "t": 20.0, "body": None},
    ],
    events=[
        {"kind": "stage_start.intent", "at": 5_000, "instance_id": 1},
        {"kind": "receipt.stored", "at": 10_000},
        {"kind": "destroy.intent", "at": 11_000, "instance_id": 1, "permit": "receipt"},
        {"kind": "job.moved", "at": 21_000, "to": "DESTROYED"},
    ],
    log="",
)
SECOND = {"id": 2, "created_at": 1.0, "destroyed_at": 3.5}
RETURNED = {"kind": "destroy.intent", "at": 3_000, "instance_id": 2, "permit": "unused"}
EARLY = {"method": "DELETE", "path": "/api/v0/instances/1/", "t": 9.0, "body": None}


def test_kept() -> None:
    """One machine, let go by its receipt; and one more that was returned unused is explained."""
    assert broken(KEPT) == []
    assert broken(replace(KEPT, expected_sha256="")) == []
    assert broken(replace(KEPT, machines=[*KEPT.machines, SECOND], events=[*KEPT.events, RETURNED])) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": "QUEUED", "hold": "GONE"}, "ended as QUEUED HELD(GONE)"),
        ({"jobs": 2}, "2 jobs"),
        ({"open_operations": 1}, "still open"),
        ({"integrity": "row missing"}, "damaged"),
        ({"model_sha256": "abd"}, "another model"),
        ({"model_sha256": "", "expected_sha256": ""}, "another model: none"),
        ({"machines": [{**KEPT.machines[0], "destroyed_at": None}]}, "still bills"),
        ({"machines": [{**KEPT.machines[0], "destroyed_at": 21.5}]}, "billed on after the job was called DESTROYED"),
        (
            {"machines": [{**SECOND, "destroyed_at": 4.5}, *KEPT.machines], "events": [*KEPT.events, RETURNED]},
            "machine 1 was rented beside machine 2",
        ),
        (
            {"machines": [*KEPT.machines, {**SECOND, "created_at": 6.0}], "events": [*KEPT.events, RETURNED]},
            "machine 2 was rented beside machine 1",
        ),
        ({"requests": [*KEPT.requests, KEPT.requests[0]]}, "sent 2 times"),
        ({"requests": [*KEPT.requests, EARLY]}, "before the receipt"),
        ({"events": KEPT.events[1:]}, "work was started on 0 machines"),
        ({"events": KEPT.events[:2]}, "let go by []"),
        ({"events": [*KEPT.events, {**RETURNED, "instance_id": 1}]}, "let go by ['receipt', 'unused']"),
        ({"machines": [*KEPT.machines, SECOND]}, "machine 2, unused, let go by []"),
        ({"log": '{"event": "job.crashed"}'}, "job.crashed"),
    ],
)
def test_broken(change: dict[str, Any], says: str) -> None:
    """Each fact alone breaks its promise."""
    assert any(says in line for line in broken(replace(KEPT, **change)))
