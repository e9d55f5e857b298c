"""The manifest against what the stages said when they ended."""

from __future__ import annotations

import pytest

from daemon.control.homecoming import another_adapter
from daemon.domain.records import StageRun
from remote_payload.contract import ArtifactFile, Done, Manifest, Output, Role, Stage, dump

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
