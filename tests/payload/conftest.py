"""The box image's python, a tiny base model, and boxes made of both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import payload_box
import pytest
from payload_box import REPOSITORY, SAME_ANYWHERE, Box, build_box, dpo_rows, sft_rows, wait_for

from remote_payload import placement
from remote_payload.contract import Phase, Stage
from remote_payload.placement import Placed


@pytest.fixture(scope="session")
def box_python() -> Path:
    """The interpreter of the box image, which has torch; `make test` creates it."""
    python = Path(os.environ.get("HOMEPORT_BOX_PYTHON", REPOSITORY / ".venv-box/bin/python"))
    if not python.exists():
        pytest.fail(f"{python} is missing: the box image is made by `make test`")
    return python


@pytest.fixture(scope="session")
def tiny_model(box_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base model, built once a run."""
    folder = tmp_path_factory.mktemp("model")
    subprocess.run([box_python, Path(__file__).with_name("tiny_model.py"), folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def warm(box_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a box python whose imports are done."""
    path = tmp_path_factory.mktemp("warm") / "socket"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([box_python, Path(__file__).with_name("warm_python.py"), path], env=environment)
    wait_for(path.exists, "the warm python listens")
    yield path
    process.kill()
    process.wait()


@pytest.fixture
def make_box(tmp_path: Path, box_python: Path, warm: Path, tiny_model: Path) -> Iterator[Callable[..., Box]]:
    """A maker of boxes; whatever still runs in one of them at the end of the test is killed."""
    made: list[Box] = []

    def make(rows: list[Any] | None = None, pairs: list[Any] | None = None, **changes: Any) -> Box:
        rows, pairs = sft_rows(24) if rows is None else rows, dpo_rows(16) if pairs is None else pairs
        made.append(build_box(tmp_path / "box", box_python, warm, tiny_model, rows, pairs, **changes))
        return made[-1]

    yield make
    for box in made:
        box.kill_chain()


@pytest.fixture(scope="session")
def trained(box_python: Path, warm: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box whose chain ran SFT and DPO without any disturbance: what disturbed runs must come to."""
    root = tmp_path_factory.mktemp("trained") / "box"
    box = build_box(root, box_python, warm, tiny_model, sft_rows(24), dpo_rows(16))
    box.prepare()
    box.start("nonce-sft", HOMEPORT_PYTHON=payload_box.warm(box))
    assert box.ended() == Phase.DONE
    return box


@pytest.fixture(scope="session")
def alone(box_python: Path, warm: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box where both stages ran undisturbed in one process, with settings that any number of processes must equal."""
    root = tmp_path_factory.mktemp("alone") / "box"
    box = build_box(root, box_python, warm, tiny_model, sft_rows(24), dpo_rows(16), **SAME_ANYWHERE)
    placement.decide(box.layout, box.job, Placed("ddp", 1))
    box.prepare()
    for stage in (Stage.SFT, Stage.DPO):
        box.train(stage)
    return box
