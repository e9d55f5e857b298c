"""The machine's GGUF files made a second time on this computer."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hub import COMMIT, REPO, Hub, hub_of
from nano_box import REPOSITORY, NanoBox

from daemon.artifacts.rebuild import RebuildFailed, Workshop
from daemon.sandbox.models import nano_folder
from remote_payload.contract import ArtifactFile, Exit, Prepared, Stage

ALL = ["Q8_0", "F16", "Q4_K_M"]
PREPARED = Prepared(ok=True, line="", sft_rows=0, dpo_rows=0)
# The product of the adapter's matrices as a processor without fused multiply-add sums it.
OTHER_PROCESSOR = {"MKL_CBWR": "COMPATIBLE"}


@pytest.fixture(scope="module")
def machine(box_python: Path, tmp_path_factory: pytest.TempPathFactory) -> NanoBox:
    """One whose files are made."""
    box = NanoBox.make(tmp_path_factory.mktemp("machine") / "box", box_python, ALL)
    box.succeed("gguf")
    return box


@pytest.fixture
def workshop(box_python: Path, tmp_path: Path) -> Workshop:
    return Workshop(box_python, tmp_path / ".rebuild")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_of(nano_folder()) as made:
        yield made


def laid_out(workshop: Workshop, machine: NanoBox, model: Path | None = None) -> Path:
    return workshop.lay_out(machine.job, PREPARED, model or machine.layout.model, machine.layout.adapter(Stage.SFT))


async def test_the_same_bytes_as_the_machines(workshop: Workshop, machine: NanoBox, hub: Hub) -> None:
    """From the hub's weights and the adapter alone, every kind of file, each told with the hash that it has; and the
    weights are fetched once for all jobs."""
    for _ in range(2):
        model = await workshop.fetch_base(REPO, COMMIT, {"HF_ENDPOINT": hub.url})
    made: list[ArtifactFile] = []
    root = laid_out(workshop, machine, model)
    await workshop.build(root, made.append)

    assert set(hub.sent.values()) == {1}
    assert sorted(str(file.quant) for file in made) == sorted(ALL)
    for file in made:
        ours = (root / file.path).read_bytes()
        assert ours == machine.gguf(str(file.quant)).read_bytes() and len(ours) == file.size

    workshop.forget(machine.job.job)
    assert not root.exists() and model.exists()


def test_another_processor_merges_the_same(box_python: Path) -> None:
    """Whatever the order in which a library sums, the product of the matrices is rounded to the same float32."""
    code = """
import hashlib, torch
from remote_payload.merge import Delta
def numbers(seed, *shape):  # the generator's own depend on the processor
    count = torch.arange(torch.Size(shape).numel()) * 2654435761 + seed
    return (count % 65537 - 32768).float().reshape(shape) / 1e6
delta = Delta(numbers(1, 16, 2048), numbers(2, 2048, 16), 2.0)
merged = delta.added_to(numbers(3, 2048, 2048).bfloat16())
print(hashlib.sha256(merged.numpy().tobytes()).hexdigest())
"""
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}
    made = {
        subprocess.run([box_python, "-c", code], env=kept | more, check=True, capture_output=True).stdout
        for more in ({}, OTHER_PROCESSOR)
    }

    assert len(made) == 1


def test_it_ends_with_whoever_started_it(workshop: Workshop, machine: NanoBox) -> None:
    """A daemon that was killed says nothing more; that its pipe ends is enough."""
    command = [workshop.python, "-m", "remote_payload.rebuild", "--root", laid_out(workshop, machine)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)}

    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        told, _ = process.communicate()

    assert process.returncode == Exit.STOPPED and told == b""


async def test_cancelled_it_is_gone(workshop: Workshop, machine: NanoBox) -> None:
    """Before whoever cancelled it goes on."""
    building = asyncio.create_task(workshop.build(laid_out(workshop, machine), lambda file: None))
    await asyncio.sleep(0.5)

    building.cancel()
    await asyncio.gather(building, return_exceptions=True)

    assert [p.pid for p in psutil.process_iter(["cmdline"]) if str(workshop.folder) in str(p.info["cmdline"])] == []


@pytest.fixture
def lying(machine: NanoBox, tmp_path: Path) -> Path:
    """The machine's adapter, one matrix of which has a million rows."""
    adapter = tmp_path / "adapter"
    shutil.copytree(machine.layout.adapter(Stage.SFT), adapter)
    code = """
import sys, torch
from safetensors.torch import load_file, save_file
tensors = load_file(sys.argv[1])
name = next(n for n in tensors if n.endswith("lora_B.weight"))
tensors[name] = torch.zeros(1_000_000, tensors[name].shape[1])
save_file(tensors, sys.argv[1])
"""
    subprocess.run([machine.python, "-c", code, adapter / "adapter_model.safetensors"], check=True)
    return adapter


async def test_what_fails_is_said(workshop: Workshop, machine: NanoBox, lying: Path, tmp_path: Path) -> None:
    """An adapter that lies about its shape makes no file, and no huge product; a hub without the model is named."""
    root = workshop.lay_out(machine.job, PREPARED, machine.layout.model, lying)
    with pytest.raises(RebuildFailed, match=r"MergeFailed: the adapter changes a weight of \(.*\) by one of 1000000x"):
        await workshop.build(root, lambda file: None)

    with hub_of(tmp_path) as empty, pytest.raises(RebuildFailed, match=r"did not bring config.json"):
        await workshop.fetch_base(REPO, COMMIT, {"HF_ENDPOINT": empty.url})


async def test_why_it_cannot_be(box_python: Path, tmp_path: Path) -> None:
    """An interpreter that is not there, one without the packages, one with them."""
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {REPOSITORY}/.venv/bin/python -S "$@"\n')
    bare.chmod(0o755)

    assert "is not there (pip install 'homeport[box]'" in await Workshop(tmp_path / "none", tmp_path).problem()
    assert "lacks torch, transformers" in await Workshop(bare, tmp_path).problem()
    assert await Workshop(box_python, tmp_path).problem() == ""
