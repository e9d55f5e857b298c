"""An earlier adapter that a job goes on from: found by folder or job, and refused where it does not fit."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import store

from daemon.artifacts import adapter
from daemon.control import adapters
from daemon.control.adapters import Adapter
from daemon.domain.spec import Eval, JobSpec, Lora, Training
from daemon.errors import NoSuchJob, SpecError
from daemon.store import artifacts, jobs
from remote_payload.adapters import CONFIG, WEIGHTS, fit_problems

LORA = Lora(r=8, alpha=16)
SETTINGS = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "base_model_name_or_path": "o/Base-7B"}
LAYERS = {"model.layers.0.self_attn.q_proj": (64, 32), "model.layers.0.mlp.up_proj": (96, 32)}


def safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A file of that header; nobody here reads what follows it."""
    header = json.dumps({name: {"dtype": "F32", "shape": shape} for name, shape in tensors.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def halves(layers: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, into) in layers.items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = (8, into)
        shapes[f"base_model.model.{name}.lora_B.weight"] = (out, 8)
    return shapes


def peft(folder: Path, layers: dict[str, tuple[int, int]] = LAYERS, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(SETTINGS | settings))
    safetensors(folder / WEIGHTS, halves(layers))
    return folder


def spec(start_from: str | None = None, compare_to: str | None = None) -> JobSpec:
    return JobSpec(
        version=1,
        name="bot",
        model="o/base-7b",
        sft=Training(data="sft.jsonl"),
        lora=LORA,
        start_from=start_from,
        eval=Eval(data="eval.jsonl", compare_to=compare_to),
    )


@pytest.mark.parametrize(
    ("settings", "model", "objection"),
    [
        ({}, "other/base-7B@main", None),
        ({}, "Base-13B", "it was trained on o/Base-7B, the job's model is Base-13B"),
        ({"r": 64}, "o/Base-7B", "dropout: 0.0; write lora: {r: 64, alpha: 16, dropout: 0.0}"),
        ({"use_dora": True}, "o/Base-7B", "use_dora is True"),
        ({"peft_type": "IA3"}, "o/Base-7B", "peft_type is 'IA3'"),
    ],
)
def test_settings_must_fit_the_job(tmp_path: Path, settings: dict[str, Any], model: str, objection: str | None) -> None:
    """An adapter goes on only in its own shape and on its own base model; the refusal says what to write."""
    found = list(adapter.objections(peft(tmp_path / "adapter", **settings), model, LORA))

    assert [objection is not None and objection in text for text in found] == [True] * (objection is not None)


def test_what_is_no_adapter_is_named(tmp_path: Path) -> None:
    """A folder without the two files of PEFT is no adapter, nor is one whose settings are none."""
    missing = list(adapter.objections(tmp_path, "o/Base-7B", LORA))
    (tmp_path / WEIGHTS).touch()
    (tmp_path / CONFIG).write_text("[]")
    unreadable = list(adapter.objections(tmp_path, "o/Base-7B", LORA))

    assert missing == [f"{WEIGHTS} and {CONFIG} missing in {tmp_path}"]
    assert unreadable == [f"{CONFIG} is not a JSON object"]


@pytest.mark.parametrize(
    ("layers", "objection"),
    [
        (LAYERS, None),
        ({"model.layers.0.mlp.up_proj": (96, 32)}, "it leaves 1 of 2 linear layers alone"),
        (LAYERS | {"model.layers.9.mlp.up_proj": (96, 32)}, "it changes 1 layers that the base model lacks"),
        (LAYERS | {"model.layers.0.mlp.up_proj": (96, 64)}, "(96, 32) in the base model, the adapter is for (96, 64)"),
    ],
)  # fmt: skip
def test_weights_must_fit_the_base_model(
    tmp_path: Path, layers: dict[str, tuple[int, int]], objection: str | None
) -> None:
    """Every linear layer of the base model is adapted, in its own shape, and nothing else is."""
    base = {f"{name}.weight": shape for name, shape in LAYERS.items()}
    others: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (512, 32), "model.norm.weight": (32,)}
    safetensors(tmp_path / "model.safetensors", base | others | {"lm_head.weight": (512, 32)})

    found = list(fit_problems(peft(tmp_path / "adapter", layers), tmp_path))

    assert [objection is not None and objection in text for text in found] == [True] * (objection is not None)


def test_found_by_folder_or_by_job(tmp_path: Path) -> None:
    """A PEFT folder, the model folder around it and the job that brought it home mean the same adapter."""
    folder = peft(tmp_path / "models" / "bot" / "v1-abc123" / "adapter")
    database = store.opened(tmp_path / "state")
    with database.write() as c:
        store.add_job(c, manifest_sha256=store.MANIFEST)
        job = jobs.get(c, store.JOB)
        artifacts.add_receipt(c, job, store.NOW, folder=str(folder.parent), files="{}", levels="{}", level="full")

    references = [str(folder), "models/bot/v1-abc123", store.JOB, "@last"]
    found = [
        adapters.find(spec(name), "job.yaml", tmp_path, "o/base-7b", database)["start_from"] for name in references
    ]

    assert {found_one.folder for found_one in found} == {str(folder)}
    assert [upload.remote for upload in found[0].uploads()] == [
        f"adapters/{found[0].files[WEIGHTS]}/{WEIGHTS}",
        f"adapters/{found[0].files[WEIGHTS]}/{CONFIG}",
    ]


def test_another_rank_may_be_compared_to_and_not_gone_on_with(tmp_path: Path) -> None:
    """An adapter of other settings than the job's is one to be scored, not one to start from."""
    peft(tmp_path / "wide", r=64)
    database = store.opened(tmp_path / "state")

    found = adapters.find(spec(compare_to="wide"), "job.yaml", tmp_path, "o/base-7b", database)

    assert {key: adapter.name for key, adapter in found.items()} == {"compare_to": "wide"}
    with pytest.raises(SpecError, match="r: 64"):
        adapters.find(spec("wide"), "job.yaml", tmp_path, "o/base-7b", database)


def test_a_reference_that_means_nothing(tmp_path: Path) -> None:
    """What is neither folder nor job, and a job without a model, are refused before anything is rented."""
    database = store.opened(tmp_path / "state")
    with database.write() as c:
        store.add_job(c)

    with pytest.raises(NoSuchJob):
        adapters.find(spec("nobody"), "job.yaml", tmp_path, "o/base-7b", database)
    with pytest.raises(SpecError, match="no verified model yet"):
        adapters.find(spec(store.JOB), "job.yaml", tmp_path, "o/base-7b", database)


def test_the_job_keeps_what_it_found(tmp_path: Path) -> None:
    """What is stored with the job is read back beside its data sets, and named to the box by the weights' hash."""
    kept = Adapter("v1", str(tmp_path), {WEIGHTS: "a" * 64, CONFIG: "b" * 64})
    database = store.opened(tmp_path / "state")
    with database.write() as c:
        text = json.dumps({"start_from": kept.__dict__, "sft": {"sha256": "c", "rows": 1, "original_sha256": "c"}})
        store.add_job(c, data_json=text)
        job = jobs.get(c, store.JOB)

    assert adapters.stored(job) == {"start_from": kept}
    assert kept.source.path == f"adapters/{'a' * 64}"
