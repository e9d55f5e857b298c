"""The public `vastai` client, in an environment of its own, as a witness that the sandbox speaks the market's API."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sandboxes import OFFER, ROOT, SandboxProcess, until

PROGRAM = ROOT / ".venv-vast" / "bin" / "vastai"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ0bm90YXJlYWxrZXlidXRsb25nZW5vdWdoISE= witness"


@pytest.fixture(scope="session")
def vastai() -> Path:
    """The client's program."""
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is missing: it is made by `make test`")
    return PROGRAM


class Witness:
    """Runs the client against one sandbox, with nothing of the person's own configuration."""

    def __init__(self, program: Path, market: SandboxProcess, home: Path) -> None:
        self._program = program
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_STATE_HOME": str(home / "state"),
            "VAST_URL": market.url,
            "VAST_API_KEY": market.api_key,
            "VASTAI_NO_UPDATE_CHECK": "1",
        }

    async def says(self, *words: str) -> str:
        """What the client prints; its exit code is 0 even for errors, so what it complains of is a failure here."""
        process = await asyncio.create_subprocess_exec(
            str(self._program), *words, env=self._env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, complaint = await process.communicate()
        assert process.returncode == 0, complaint.decode()
        assert "error" not in complaint.decode().lower(), complaint.decode()
        return out.decode()


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox")
    yield sandbox
    await sandbox.end()


@pytest.fixture
def client(vastai: Path, market: SandboxProcess, tmp_path: Path) -> Witness:
    return Witness(vastai, market, tmp_path)


async def test_the_client_rents_uses_and_returns_an_instance(client: Witness, market: SandboxProcess) -> None:
    """The whole line of the official client works, and the ledger agrees with what it was told."""
    user = await client.says("show", "user", "--raw")
    assert json.loads(user)["username"] == "sandbox"

    query = "gpu_name=H100_SXM num_gpus=1 disk_space>=200 inet_down>500 gpu_ram>=70"
    found = json.loads(await client.says("search", "offers", query, "-o", "dph_total", "--storage", "200", "--raw"))
    assert [offer["id"] for offer in found] == [10301, 10501, 10101, 10201]

    created = await client.says(
        "create", "instance", str(OFFER), "--image", "pytorch/pytorch:2.4", "--disk", "100", "--ssh", "--direct",
        "--label", "job-abc", "--env", "-e A=B -p 8080:8080", "--onstart-cmd", "echo witness $A", "--cancel-unavail",
        "--raw",
    )  # fmt: skip
    instance = json.loads(created)["new_contract"]
    await market.reaches(instance, "running")

    (listed,) = json.loads(await client.says("show", "instances", "--raw"))
    shown = json.loads(await client.says("show", "instance", str(instance), "--raw"))
    assert (listed["id"], listed["label"]) == (instance, "job-abc")
    assert (shown["actual_status"], shown["extra_env"]) == ("running", {"A": "B", "-p 8080:8080": "1"})
    assert "H100" in await client.says("show", "instances")

    port = shown["ports"]["22/tcp"][0]["HostPort"]
    assert (await client.says("ssh-url", str(instance))).strip() == f"ssh://root@127.0.0.1:{port}"
    await client.says("attach", "ssh", str(instance), SSH_KEY)
    keys = (await market.http.get(f"/api/v0/instances/{instance}/ssh/")).json()["ssh_keys"]
    assert [key["public_key"] for key in json.loads(keys)] == [SSH_KEY]

    async def logs() -> bool:
        return "witness B" in await client.says("logs", str(instance), "--tail", "50")

    await until(logs)

    assert "renamed" in await client.says("label", "instance", str(instance), "renamed")
    assert (await market.ledger(instance))["label"] == "renamed"

    assert "stopping" in await client.says("stop", "instance", str(instance))
    await market.reaches(instance, "exited")
    await client.says("start", "instance", str(instance))
    await market.reaches(instance, "running")

    assert "destroying" in await client.says("destroy", "instance", str(instance), "-y")
    await market.gone(instance)
    assert json.loads(await client.says("show", "instances", "--raw")) == []
    account = await market.ledger(instance)
    assert [i["state"] for i in account["intervals"]] == ["loading", "running", "stopped", "loading", "running"]


async def test_the_client_repeats_a_create_whose_reply_was_lost(client: Witness, market: SandboxProcess) -> None:
    """Three identical creates arrive: the hazard that keeps us from using this client to rent."""
    await market.fault("lost_before_effect", match={"method": "PUT", "path": "/api/v0/asks/*"}, count=None)

    with pytest.raises(AssertionError, match="error"):
        await client.says("create", "instance", str(OFFER), "--image", "x", "--disk", "20", "--ssh", "--raw")

    creates = [r for r in await market.journal() if r["method"] == "PUT"]
    assert len(creates) == 3
