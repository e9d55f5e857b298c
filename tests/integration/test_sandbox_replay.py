"""The replay image over SSH: the real runner protocol, a recorded real run, and nothing but the recorded job."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
from sandboxes import ROOT, SandboxProcess, until

from daemon.sandbox import recording
from remote_payload import contract
from remote_payload.contract import Done, Exit, JobFile, Manifest, Role, Stage

PYTHON = "../bin/python"
RUN = f"cd homeport && PYTHONPATH=payload {PYTHON} -m remote_payload"
NANO = ROOT / "daemon" / "sandbox" / "models" / "nano"


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording, unpacked: its job, its data, its files."""
    folder = tmp_path_factory.mktemp("tape") / "tape"
    recording.unpack(recording.RECORDING, folder)
    return folder


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    sandbox = SandboxProcess(tmp_path / "sandbox", "--image", f"*replay*={sys.executable}", "--no-rate-limits")
    yield sandbox
    await sandbox.end()


class ReplayBox:
    """A rented box of the replay image with payload, model and data in place."""

    def __init__(self, connection: asyncssh.SSHClientConnection, root: Path, tape: Path) -> None:
        self.connection = connection
        self.root = root
        recorded = contract.load(JobFile, (tape / contract.JOB_FILE).read_bytes())
        stages = [dataclasses.replace(plan, nonce=f"fresh-{plan.stage.lower()}") for plan in recorded.stages]
        self.job = dataclasses.replace(recorded, job="other1", name="renamed", stages=stages)
        shutil.copytree(ROOT / "remote_payload", root / contract.PAYLOAD_DIR / "remote_payload")
        shutil.copytree(NANO, root / contract.MODEL_DIR)
        shutil.copytree(tape / contract.DATA_DIR, root / contract.DATA_DIR)
        (root / contract.RUN_DIR).mkdir()

    def write_job(self, job: JobFile) -> None:
        (self.root / contract.RUN_DIR / contract.JOB_FILE).write_text(contract.dump(job))

    async def run(self, words: str) -> tuple[int | None, str]:
        done = await self.connection.run(f"{RUN}.{words}")
        return done.exit_status, f"{done.stdout}{done.stderr}"

    async def over(self) -> str:
        """The phase in which the chain ended."""

        async def ended() -> str:
            report = json.loads((await self.run("run status"))[1])
            return "" if report["alive"] else str(report["status"]["phase"])

        return await until(ended)


@pytest.fixture
async def box(market: SandboxProcess, tape: Path) -> AsyncIterator[ReplayBox]:
    instance = await market.rent(image="homeport/replay")
    connection = await market.connect(instance)
    yield ReplayBox(connection, market.home(instance) / "homeport", tape)
    connection.close()
    await connection.wait_closed()


async def test_the_whole_line_is_replayed(box: ReplayBox, tape: Path) -> None:
    """Bootstrap to manifest through the real protocol, in seconds, with the recorded model under the job's own name."""
    box.write_job(box.job)
    made = await box.connection.run(f"cd homeport && bash payload/remote_payload/bootstrap.sh {PYTHON}")
    assert str(made.stdout).splitlines()[-1] == f"PYTHON={box.root.parent}/bin/python", made.stderr
    code, said = await box.run("preflight")
    assert (code, json.loads(said)["ok"]) == (0, True)
    code, said = await box.run("prepare")
    assert code == 0, said
    assert box.job.integration.line(box.job.integration.sft_rows, box.job.integration.dpo_rows) in said.splitlines()

    assert (await box.run(f"run start --nonce {box.job.stages[0].nonce}"))[0] == 0
    assert await box.over() == "DONE"

    manifest = contract.load(Manifest, (box.root / "run" / contract.MANIFEST_FILE).read_bytes())
    (model,) = [file for file in manifest.files if file.role is Role.GGUF]
    assert model.path == "run/out/renamed-Q8_0.gguf"
    assert model.sha256 == hashlib.sha256((tape / "gguf" / "Q8_0.gguf").read_bytes()).hexdigest()
    for plan in box.job.stages:
        done = contract.load(Done, (box.root / "run" / "stages" / plan.nonce / contract.DONE_FILE).read_bytes())
        assert (done.stage, done.nonce) == (plan.stage, plan.nonce)
        assert done.outputs


async def test_other_data_is_refused(box: ReplayBox) -> None:
    """A job whose rows are not the recorded ones gets no recorded model."""
    assert box.job.sft_data is not None
    rows = (box.root / box.job.sft_data.path).read_text().replace("Buy", "Sell")
    digest = hashlib.sha256(rows.encode()).hexdigest()
    (box.root / "data" / "other.jsonl").write_text(rows)
    other = dataclasses.replace(box.job.sft_data, path="data/other.jsonl", sha256=digest)
    box.write_job(dataclasses.replace(box.job, sft_data=other))

    code, said = await box.run("prepare")

    assert code == Exit.BAD_CONFIG, said


async def test_wrong_counts_are_found_by_the_real_reader(box: ReplayBox) -> None:
    """The rows are really read on replay, so a wrong announcement fails as it does on a real box."""
    announced = dataclasses.replace(box.job.integration, sft_rows=box.job.integration.sft_rows + 1)
    box.write_job(dataclasses.replace(box.job, integration=announced))

    code, said = await box.run("prepare")

    assert code == Exit.INTEGRATION
    assert "announced" in said


async def test_a_killed_run_goes_on_to_the_same_end(box: ReplayBox, tape: Path, market: SandboxProcess) -> None:
    """After a reboot in the middle of SFT, `start` under the same nonce ends in the same model."""
    box.write_job(box.job)
    code, said = await box.run("prepare")
    assert code == 0, said
    first = box.job.stages[0]
    await box.run(f"run start --nonce {first.nonce}")

    async def training() -> bool:
        events = box.root / "run" / contract.EVENTS_FILE
        return events.exists() and '"kind": "step"' in events.read_text()

    await until(training)
    await market.fault("reboot")
    await box.connection.wait_closed()
    instance = int(box.root.parent.name)
    box.connection = await market.connect(instance)
    await box.run(f"run start --nonce {first.nonce}")
    assert await box.over() == "DONE"

    manifest = contract.load(Manifest, (box.root / "run" / contract.MANIFEST_FILE).read_bytes())
    recorded = hashlib.sha256((tape / "sft" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert manifest.parents[Stage.SFT] == recorded
    box.connection.close()
