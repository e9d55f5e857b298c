"""The box code against the sandbox's own machines, which the demo and the crash tests run on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sandboxes import SandboxProcess

from daemon.box import challenge
from daemon.box.address import BoxAddress
from daemon.box.box import Box
from daemon.errors import AccessDenied, HostKeyChanged, LinkLost

SECRET = "carried by the API"


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    process = SandboxProcess(tmp_path / "sandbox", "--image", f"light={sys.executable}")
    yield process
    await process.end()


async def prove(box: Box) -> None:
    """As the daemon does: until sshd listens, knows our key, and the start script has run."""
    async with asyncio.timeout(120):
        while True:
            try:
                await box.prove()
            except (LinkLost, AccessDenied):
                await asyncio.sleep(0.05)
            else:
                return


async def test_a_rented_machine_is_proven_and_serves(sandbox: SandboxProcess, tmp_path: Path) -> None:
    """With onstart and environment from the create request: proof, payload, a command; another secret is refused."""
    instance = await sandbox.rent(image="light", onstart=challenge.onstart(), env={challenge.ENV_NAME: SECRET})
    await sandbox.reaches(instance, "running")
    running = await sandbox.show(instance)
    assert running is not None
    key = tmp_path / "key"
    sandbox.key.write_private_key(key)
    direct = (running["public_ipaddr"].strip(), int(running["ports"]["22/tcp"][0]["HostPort"]))
    proxy = (running["ssh_host"], running["ssh_port"])

    for endpoint in (direct, proxy):
        box = Box(BoxAddress(instance, (endpoint,), None, SECRET, "homeport", "bin/python"), key)
        await prove(box)
        await box.upload_payload()
        assert (await box.run(f"PYTHONPATH=payload {box.address.python} -m remote_payload.hashes x")).strip()
        await box.aclose()
        stranger = Box(BoxAddress(instance, (endpoint,), None, "guess", "homeport", "bin/python"), key)
        with pytest.raises(HostKeyChanged):
            await stranger.prove()
