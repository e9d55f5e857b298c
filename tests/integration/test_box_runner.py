"""The payload's own runner, driven over SSH: job, start, status, logs, markers, manifest."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from boxes import manifest_of, ready_box

from daemon.box.lines import clean_line
from daemon.errors import RemoteFailed, TransferFailed
from remote_payload import contract
from remote_payload.contract import (
    ContractError,
    Done,
    Failed,
    Integration,
    JobFile,
    Lora,
    ModelSource,
    Needs,
    Phase,
    Stage,
    StagePlan,
)

JOB = JobFile(
    job="abc234",
    attempt=1,
    name="tiny",
    model=ModelSource("nano"),
    stages=[StagePlan(Stage.SFT, "n1")],
    integration=Integration("test", 1, 0),
    lora=Lora(),
    gguf=["Q8_0"],
)


async def test_a_stage_is_started_watched_and_its_failure_read(tmp_path: Path) -> None:
    """On a box without torch the real runner fails the stage, and everything it says about that arrives here."""
    async with ready_box(tmp_path) as (there, box):
        await box.write_job(JOB)
        before = await box.status()

        first = await box.start_stage("n1")
        again = await box.start_stage("n1")
        async with asyncio.timeout(120):
            while (end := await box.stage_end("n1")) is None:
                pass

        assert (before.alive, before.status, before.events_size) == (False, None, 0)
        assert first.job == again.job == "abc234"
        assert isinstance(end, Failed)
        assert (end.stage, end.attempt) == (Stage.SFT, 1)
        async with asyncio.timeout(120):
            while (after := await box.status()).alive:
                pass
        assert after.status is not None
        assert after.status.phase is Phase.FAILED
        events, offset = await box.read_lines("events", 0, 1 << 20)
        assert offset == after.events_size == (there.root / "run/events.jsonl").stat().st_size
        assert b'"stage_start"' in events
        assert await box.read_lines("events", offset, 1 << 20) == (b"", offset)


async def test_a_nonce_of_no_stage_is_refused(tmp_path: Path) -> None:
    """The runner's refusal comes with its exit code."""
    async with ready_box(tmp_path) as (_, box):
        await box.write_job(JOB)

        with pytest.raises(RemoteFailed) as refusal:
            await box.start_stage("another")

        assert refusal.value.exit_code_remote == contract.Exit.BAD_CONFIG


async def test_lines_are_read_by_offset_and_shown_clean(tmp_path: Path) -> None:
    """A log with escapes and an unfinished line: whole lines only, nothing that moves a terminal."""
    async with ready_box(tmp_path) as (there, box):
        (there.root / "run/log.txt").write_bytes(b"\x1b[2Jstep 1\nstep 2\nste")

        block, offset = await box.read_lines("log", 0, 1 << 20)

        assert [clean_line(line) for line in block.decode().splitlines()] == ["step 1", "step 2"]
        assert offset == len(b"\x1b[2Jstep 1\nstep 2\n")
        assert await box.read_lines("log", offset, 1 << 20) == (b"", offset)
        assert await box.read_lines("events", 0, 1 << 20) == (b"", 0)


async def test_markers_are_believed_only_for_their_own_nonce(tmp_path: Path) -> None:
    """done.json is the proof of a stage; one that speaks of another nonce, or is no JSON, is none."""
    async with ready_box(tmp_path) as (there, box):
        done = Done(Stage.SFT, "n1", 1, [], 1.0)
        for nonce, text in {"n1": contract.dump(done), "n2": contract.dump(done), "n3": "{"}.items():
            (there.root / "run/stages" / nonce).mkdir(parents=True)
            (there.root / "run/stages" / nonce / "done.json").write_text(text)

        assert await box.stage_end("n1") == done
        assert await box.stage_end("n0") is None
        for nonce in ("n2", "n3"):
            with pytest.raises(TransferFailed):
                await box.stage_end(nonce)
        with pytest.raises(ContractError):
            await box.stage_end("../stages/n1")


async def test_the_manifest_comes_with_the_hash_of_its_text(tmp_path: Path) -> None:
    """None before it is written; refused when a path in it leaves run/out."""
    async with ready_box(tmp_path) as (there, box):
        assert await box.manifest() is None
        (there.root / "run/out").mkdir(parents=True)
        (there.root / "run/out/m.gguf").write_bytes(b"x")
        manifest = manifest_of(there.root, ["run/out/m.gguf"])
        text = contract.dump(manifest)
        (there.root / "run/manifest.json").write_text(text)

        assert await box.manifest() == (manifest, hashlib.sha256(text.encode()).hexdigest(), text)

        lying = replace(manifest, files=[replace(manifest.files[0], path="run/out/../../.ssh/authorized_keys")])
        (there.root / "run/manifest.json").write_text(contract.dump(lying))
        with pytest.raises(TransferFailed):
            await box.manifest()


async def test_preflight_answers_whether_passed_or_not(tmp_path: Path) -> None:
    """A box that lacks something is an answer with reasons, not an error."""
    async with ready_box(tmp_path) as (_, box):
        found = await box.preflight(Needs())

        assert found["ok"] is False
        assert any(not check["ok"] and check["name"] for check in found["checks"])


async def test_bootstrap_of_an_unfit_image_says_why(tmp_path: Path) -> None:
    """An image without torch cannot be made ready: exit 30 with the reason."""
    async with ready_box(tmp_path) as (_, box):
        with pytest.raises(RemoteFailed, match="torch") as failure:
            await box.bootstrap()

        assert failure.value.exit_code_remote == contract.Exit.PREFLIGHT
