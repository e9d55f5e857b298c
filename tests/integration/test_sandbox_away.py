"""The start script of a create request on a machine of the sandbox: it stops itself, by its own key, at every start."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sandboxes import SandboxProcess, until

from daemon.box import challenge, onstart
from daemon.settings import Image

LIMIT_S = 2.0
PATIENCE_S = 120.0
IMAGE = Image("light", "homeport", "bin/python", 0.0)


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", f"light={sys.executable}", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


async def test_a_machine_that_nobody_calls_stops_itself(market: SandboxProcess) -> None:
    """Nothing was ever uploaded. Started again, it does so again; its disk is kept, and why is in the job's log."""
    start_script = onstart.script(IMAGE, LIMIT_S)
    instance = await market.rent(image=IMAGE.ref, onstart=start_script, env={challenge.ENV_NAME: "secret"})
    stops = f"/api/v0/instances/{instance}/"

    async def stopped_itself(times: int) -> bool:
        asked = [r for r in await market.journal() if r["path"] == stops and r["body"] == {"state": "stopped"}]
        return len(asked) == times and await market.status(instance) == "exited"

    await until(lambda: stopped_itself(1), PATIENCE_S)
    assert (await market.put(instance, state="running"))["success"]
    await until(lambda: stopped_itself(2), PATIENCE_S)

    log = (market.home(instance) / "homeport/run/log.txt").read_text()
    assert log.splitlines() == ["away: nobody calls; stopping this instance, its disk is kept"] * 2
    states = [interval["state"] for interval in (await market.ledger(instance))["intervals"]]
    assert states.count("running") == 2
    assert states[-1] == "stopped"
