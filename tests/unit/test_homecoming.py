"""The manifest against what the stages said when they ended."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import pytest
from desk import Counter

from daemon.control.homecoming import another_adapter
from daemon.domain.records import StageRun
from daemon.errors import TransferFailed
from remote_payload.contract import MANIFEST_FILE, RUN_DIR, ArtifactFile, Done, Manifest, Output, Role, Stage, dump

SFT, DPO, STRANGER = "5f" * 32, "d0" * 32, "00" * 32


def run(stage: Stage, weights: str | None) -> StageRun:
    """A stage of the attempt, finished unless it left nothing."""
    outputs = [Output(f"run/{stage.lower()}/adapter/{name}", 1, weights or "") for name in
               ("adapter_model.safetensors", "README.md")]  # fmt: skip
    done = dump(Done(stage, "n", 1, outputs, 1.0, 1, {})) if weights else None
    return StageRun("abc123", 1, stage, "n", 0, 1, 2 if done else None, done)


def manifest(*weights: str) -> Manifest:
    files = [ArtifactFile("run/out/adapter/adapter_model.safetensors", Role.ADAPTER, 1, sha, [sha]) for sha in weights]
    return Manifest("abc123", 1, "n", 0.0, 8 << 20, files)


CASES = [
    ("of the last stage", [DPO], True),
    ("of the stage before", [SFT], False),
    ("of another job", [STRANGER], False),
    ("left out", [], False),
]


@pytest.mark.parametrize(("came", "good"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_adapter_must_be_that_of_the_last_training(came: list[str], good: bool) -> None:
    """done.json was read when DPO ended, long before anything was converted."""
    runs = [run(Stage.SFT, SFT), run(Stage.DPO, DPO), run(Stage.GGUF, STRANGER)]

    problem = another_adapter(manifest(*came), runs)

    assert (problem == "") is good
    assert good or "is not the one that DPO ended with" in problem


def test_without_training_there_is_no_adapter_to_compare() -> None:
    """A job that only converts."""
    assert another_adapter(manifest(), [run(Stage.GGUF, STRANGER)]) == ""


class Box:
    """Gives out that manifest, under its true hash or another."""

    def __init__(self, given: Manifest | None, sha256: str = "") -> None:
        self.text = dump(given) if given else ""
        self.sha256 = sha256 or hashlib.sha256(self.text.encode()).hexdigest()
        self.given = given

    async def manifest(self) -> tuple[Manifest, str, str] | None:
        return (self.given, self.sha256, self.text) if self.given else None


def of(job: str, nonce: str = "n", quant: str = "Q8_0", adapter: str = SFT) -> Manifest:
    """The artifact set of one SFT and one GGUF."""
    gguf = ArtifactFile("run/out/bot-Q8_0.gguf", Role.GGUF, 1, STRANGER, [STRANGER], quant)
    return Manifest(job, 1, nonce, 0.0, 8 << 20, [gguf, *manifest(adapter).files])


def ended(named: str) -> StageRun:
    """The GGUF stage, whose done.json names a manifest of that hash."""
    left = [Output(f"{RUN_DIR}/{MANIFEST_FILE}", 1, named)]
    return StageRun("job", 1, Stage.GGUF, "n", 0, 1, 2, dump(Done(Stage.GGUF, "n", 1, left, 1.0)))


async def asked(counter: Counter, box: Box, named: str | None = None) -> tuple[str, str]:
    runs = [run(Stage.SFT, SFT), ended(named or box.sha256)]
    return await counter.driver.acting.home(counter.look()).manifest(cast(Any, box), runs)


async def test_the_manifest_that_the_stage_named_is_taken(tmp_path: Path) -> None:
    """To the letter: everything that comes home is held against this text."""
    counter = await Counter.open(tmp_path)
    box = Box(of(counter.job.id))

    assert await asked(counter, box) == (box.text, box.sha256)

    counter.desk.database.close()


async def test_any_other_manifest_is_refused(tmp_path: Path) -> None:
    """Whatever else a machine gives out is not what the stage ended with, or not what this job asked for."""
    counter = await Counter.open(tmp_path)
    job = counter.job.id

    for box, named, why in [
        (Box(None), STRANGER, "has no manifest"),
        (Box(of(job)), STRANGER, "is not the one that the GGUF stage's done.json names"),
        (Box(of(job), sha256=STRANGER), STRANGER, "is not the one that the GGUF stage's done.json names"),
        (Box(of("other1")), None, "is of job other1"),
        (Box(of(job, nonce="before")), None, "nonce before"),
        (Box(of(job, quant="Q4_K_M")), None, "lacks Q8_0"),
        (Box(of(job, adapter=STRANGER)), None, "is not the one that SFT ended with"),
    ]:
        with pytest.raises(TransferFailed, match=why):
            await asked(counter, box, named)

    counter.desk.database.close()
