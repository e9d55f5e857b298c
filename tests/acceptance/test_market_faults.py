"""A market whose replies are lost, whose listings lag, and whose console somebody else uses."""

from __future__ import annotations

import pytest
from conftest import MakeHome, MakeJob
from home import until

CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
DESTROY = {"method": "DELETE", "path": "/api/v0/instances/*"}
FOR_EVER = 3600.0  # seconds; until the order is replaced
LIST = {"method": "GET", "path": "/api/v1/instances*"}


@pytest.mark.parametrize(
    ("fault", "params"),
    [
        pytest.param("reply_lost", {}, marks=pytest.mark.full),  # the real kills order it all the time
        ("effect_then_error", {"status": 502, "body": "<html>bad gateway</html>"}),
    ],
)
def test_create_whose_reply_is_lost(home: MakeHome, job_file: MakeJob, fault: str, params: dict[str, object]) -> None:
    """The machine is found by its label and adopted: one create on the wire, one machine."""
    one = home()
    one.fault(fault, match=CREATE, **params)
    one.start()

    job = one.submit(job_file())
    one.reach(job, "DESTROYED")

    assert len(one.journal("PUT", "/asks/")) == len(one.ledger()) == 1
    assert one.events(job, "lease.adopted")  # by its label, before or after the create was called unknown


def test_create_that_never_happened(home: MakeHome, job_file: MakeJob) -> None:
    """Lost before its effect: absent from enough listings and from the charges, then a new create under a new label."""
    one = home(time_scale=200.0)
    one.fault("lost_before_effect", match=CREATE)
    one.start()

    job = one.submit(job_file())
    one.reach(job, "DESTROYED")

    assert len(one.ledger()) == 1
    assert len(one.journal("PUT", "/asks/")) == 2
    labels = [intent["label"] for intent in one.events(job, "create.intent")]
    assert len(set(labels)) == 2
    assert one.events(job, "create.absent")


def test_nothing_is_rented_while_a_create_is_unknown(home: MakeHome, job_file: MakeJob) -> None:
    """A listing that cannot be trusted resolves nothing: the job waits and says so."""
    one = home()
    one.start("create.unknown", "after")
    one.fault("late_listing", match=CREATE, seconds=5.0)
    one.fault("reply_lost", match=CREATE)
    job = one.submit(job_file(), check=None)
    assert one.crashed()
    lag = one.fault("http_error", match=LIST, count=None, status=500, body="")
    one.start()
    until(lambda: len([r for r in one.journal("GET", "/v1/instances") if r["status"] == 500]) >= 4, "listings failed")

    assert len(one.journal("PUT", "/asks/")) == 1
    assert one.job(job)["state"] == "QUEUED"
    one.heal(lag)
    one.reach(job, "DESTROYED")
    assert len(one.ledger()) == 1


def test_late_arrival(home: MakeHome, job_file: MakeJob) -> None:
    """A machine that turns up after the job has another is stopped, then destroyed as unused; the job is not hurt."""
    one = home(time_scale=200.0)
    one.fault("late_listing", match=CREATE, seconds=FOR_EVER)
    one.fault("reply_lost", match=CREATE)
    no_charges = '{"success": true, "results": [], "count": 0, "total": 0, "next_token": null}'
    one.fault(
        "http_error", match={"method": "GET", "path": "/api/v0/charges*"}, count=None, status=200, body=no_charges
    )
    one.start()

    job = one.submit(job_file())
    until(lambda: len(one.ledger()) == 2, "another machine")
    one.fault("vanish", seconds=0.0)
    one.reach(job, "DESTROYED")
    until(lambda: all(i["destroyed_at"] for i in one.ledger()), "both machines are gone")

    assert len(one.ledger()) == 2
    assert one.events(job, "lease.late")
    assert {intent["permit"] for intent in one.events(job, "destroy.intent")} == {"receipt", "unused"}
    assert one.events(job, "stop.done")


def test_destroy_whose_reply_is_lost(home: MakeHome, job_file: MakeJob) -> None:
    """Confirmed by the listings, not repeated blindly."""
    one = home(time_scale=10.0)  # the listings have 6 s before the destroy would be sent again
    one.fault("reply_lost", match=DESTROY)
    one.start()

    job = one.submit(job_file())
    one.reach(job, "DESTROYED")

    assert len(one.journal("DELETE", "/instances/")) == 1
    assert one.events(job, "destroy.unknown") and one.events(job, "destroy.done")
    assert one.ledger()[0]["destroyed_at"] is not None


def test_a_bad_key_is_not_gone(home: MakeHome, job_file: MakeJob) -> None:
    """404 for every call, because the key was revoked, changes nothing; when it works again the job goes on."""
    one = home()
    one.start()
    job = one.submit(job_file(destroy="ask"))
    one.reach(job, "HELD")

    bad = one.fault("bad_key", match={"method": "*", "path": "/api/*"}, count=None)
    until(lambda: len([r for r in one.journal("GET") if r["status"] == 404]) >= 4, "several calls were refused")
    assert one.jobctl("leases", "--json").stdout.count('"LIVE"') == 1
    one.heal(bad)
    one.jobctl("accept", job)

    one.reach(job, "DESTROYED")


def test_a_machine_that_is_called_exited_works_on(home: MakeHome, job_file: MakeJob) -> None:
    """The market says so of one that trains, as it does for minutes at times: it is neither stopped nor given up."""
    one = home()
    one.start()
    job = one.submit(job_file())
    until(lambda: one.events(job, "stage_start.done"), "training has begun")

    one.fault("status", seconds=FOR_EVER, status="exited")
    one.reach(job, "VERIFIED", "DESTROYED")

    assert {event["status"] for event in one.events(job, "lease.status")} >= {"exited, on its GPU"}
    assert not one.events(job, "stop.intent") and not one.events(job, "start.intent")
    assert not one.events(job, "job.held")
    one.reach(job, "DESTROYED")
    assert len(one.ledger()) == 1


def test_somebody_destroys_it_in_the_console(home: MakeHome, job_file: MakeJob) -> None:
    """A vanished machine is HELD(GONE), not an excuse to rent another; resume rents anew."""
    one = home()
    one.start()
    job = one.submit(job_file(destroy="ask"))
    until(lambda: one.events(job, "stage_start.done"), "training has begun")

    one.fault("console_destroy")
    held = one.reach(job, "HELD")
    assert held["hold"]["reason"] == "GONE"
    assert len(one.ledger()) == 1

    one.jobctl("resume", job)
    until(lambda: one.job(job)["state"] == "VERIFIED", "the new machine did the work")
    one.jobctl("accept", job)
    one.reach(job, "DESTROYED")
    assert len(one.ledger()) == 2
