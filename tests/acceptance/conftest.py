"""Homes of the installed wheel, each with a market of its own."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from home import Home
from installed import ROOT, build_wheel, install

BOX_PYTHON = ROOT / ".venv-box/bin/python"
RECORDING = ROOT / "daemon/sandbox/recordings/nano.tar.gz"

MakeHome = Callable[..., Home]
MakeJob = Callable[..., Path]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the installed jobctl, jobd and python."""
    return install(wheel, tmp_path_factory.mktemp("installed") / "venv")


@pytest.fixture
def home(installed: Path, tmp_path: Path) -> Iterator[MakeHome]:
    """Makes homes with an open market; `real=True` trains for real, else a recorded run is replayed."""
    made: list[Home] = []

    def make(*, real: bool = False, name: str = "home", **settings: Any) -> Home:
        image, python = ("homeport/nano", BOX_PYTHON) if real else ("homeport/replay", installed / "python")
        made.append(Home(tmp_path / f"{name}{len(made)}", installed, image, python, **settings))
        made[-1].open_market()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded job: job.json and its data."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDING) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def job_file(recorded: Path, tmp_path: Path) -> MakeJob:
    """Writes the spec of the recorded job, `changes` replacing whole lines of it by key."""

    def write(name: str = "quick", **changes: str) -> Path:
        return write_job(recorded, tmp_path, name, **changes)

    return write


def write_job(recorded: Path, to: Path, name: str, **changes: str) -> Path:
    """The spec of the recorded job and its data, in a folder of its own under `to`; an empty change drops the line."""
    job = json.loads((recorded / "job.json").read_text())
    folder = to / f"spec-{name}"
    folder.mkdir(exist_ok=True)
    for kind in ("sft", "dpo"):
        (folder / f"{kind}.jsonl").write_bytes((recorded / job[f"{kind}_data"]["path"]).read_bytes())
    lines = {
        "version": "1",
        "name": name,
        "model": str(ROOT / "daemon/sandbox/models/nano"),
        **{
            kind: f"{{data: {kind}.jsonl, epochs: {job[kind]['epochs']}, lr: {job[kind]['lr']}}}"
            for kind in ("sft", "dpo")
        },
        "lora": f"{{r: {job['lora']['r']}, alpha: {job['lora']['alpha']}}}",
        "batch_size": str(job["batch_size"]),
        "max_length": str(job["max_length"]),
        "reasoning": job["reasoning"],
        "checkpoint": f"{{every: {job['checkpoint_every']}, keep: {job['checkpoint_keep']}}}",
        "integration": f"{{tag: {job['integration']['tag']}, sft_rows: {job['sft_data']['rows']}, "
        f"dpo_rows: {job['dpo_data']['rows']}}}",
        "export": "{gguf: [Q8_0]}",
        "limits": "{price: 5.00/h, cost: $5.00, time: 1h}",
    } | changes
    path = folder / "job.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value))
    return path
