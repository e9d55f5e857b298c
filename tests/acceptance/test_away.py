"""Nobody at home: the machine stops itself, however far the job has come; the market's ledger says what that costs."""

from __future__ import annotations

import pytest
from conftest import MakeHome, MakeJob
from home import Home, until

HOLD = 0.05  # dollars: a minute and a half of an H100


def cost(one: Home) -> float:
    (instance,) = one.ledger()
    return float(instance["cost_usd"])


def is_off(one: Home) -> bool:
    return bool(one.ledger()[0]["intervals"][-1]["state"] == "stopped")


@pytest.mark.full
@pytest.mark.parametrize(("gone_at", "reboots"), [("box.proven", False), ("stage_start.done", True)])
def test_a_machine_that_nobody_calls(home: MakeHome, job_file: MakeJob, gone_at: str, reboots: bool) -> None:
    """The daemon is gone before the first stage start, or when a reboot ends the chain: that costs a hold at most.

    Back again, it starts the machine and brings the job home.
    """
    one = home()
    one.start(gone_at, "after")
    job = one.submit(job_file(machine="{gpu: [H100 SXM]}", limits=f"{{price: 5.00/h, hold: ${HOLD}}}"))
    assert one.crashed()
    worked = 0.0
    if reboots:
        worked = cost(one)
        one.fault("reboot")

    until(lambda: is_off(one), "the machine is off")

    (instance,) = one.ledger()
    assert instance["destroyed_at"] is None
    assert cost(one) - worked <= HOLD
    one.start()
    one.reach(job, "DESTROYED")
