"""SFT and DPO as they really run: what is trained, what is left behind, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from payload_box import Box, ready

from remote_payload import placement
from remote_payload.contract import Exit, Stage, StagePlan, StageTraining
from remote_payload.script import ScriptFailed

MakeBox = Callable[..., Box]

# Prints the names of an adapter's tensors and whether any is not finite or untouched since its start (B begins at 0).
TENSORS = """
import json
from safetensors.torch import load_file
found = load_file("run/{stage}/adapter/adapter_model.safetensors")
whole = all(bool(t.isfinite().all()) and bool((t != 0).any()) for t in found.values())
print(json.dumps([sorted(found), whole]))
"""


def test_only_the_adapter_is_trained(trained: Box) -> None:
    """Both adapters hold trained LoRA weights of all seven linear layers of each block, and nothing else."""
    for stage in ("sft", "dpo"):
        names, whole = json.loads(trained.evaluate(TENSORS.format(stage=stage)))

        assert len(names) == 2 * 7 * 2
        assert all(".lora_A." in name or ".lora_B." in name for name in names)
        assert whole


def test_adapter_folder_tells_nothing_of_the_box(trained: Box) -> None:
    """An adapter is two files: no reference copy, no path of the rented machine."""
    folder = trained.layout.adapter(Stage.DPO)

    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert str(trained.layout.root) not in (folder / "adapter_config.json").read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_dpo_starts_from_its_own_reference(trained: Box) -> None:
    """The first DPO loss is ln 2, and the loss falls from there: the policy is the SFT model and learns."""
    losses = [step["loss"] for step in trained.events("step") if step["stage"] == "DPO"]

    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < losses[0]


def test_every_step_is_told(trained: Box) -> None:
    """Each optimizer step has one event with its figures, and events are numbered without a gap."""
    steps = [step for step in trained.events("step") if step["stage"] == "SFT"]
    lines = [json.loads(line) for line in trained.layout.events.read_text().splitlines()]

    assert [step["step"] for step in steps] == list(range(1, 13))
    assert {step["total"] for step in steps} == {12}
    assert all(step[name] > 0 for step in steps for name in ("loss", "grad_norm", "tokens", "tok_s"))
    assert all("lr" in step for step in steps)
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert steps[-1]["tokens"] == 2 * trained.layout.read_prepared().tokens["SFT"]


def test_each_training_says_hello(trained: Box) -> None:
    """Once a stage, before its first step: the versions that `prepare` found, what makes it fast, and the fingerprint
    of its checkpoints. Without a card there is no memory to tell."""
    told = [line for line in map(json.loads, trained.layout.events.read_text().splitlines())]

    for stage in (Stage.SFT, Stage.DPO):
        kinds = [line["kind"] for line in told if line["stage"] == stage]
        (hello,) = [line for line in told if line["kind"] == "hello" and line["stage"] == stage]
        sealed = trained.layout.stage(stage).glob("checkpoint-*/checkpoint.json")
        assert kinds.index("hello") < kinds.index("step")
        assert hello["versions"] == trained.layout.read_prepared().versions
        assert (hello["gpus"], hello["driver"], hello["processes"]) == ([], None, 1)
        assert (hello["levers"], hello["plain"]) == (["packed rows", "one-pass head"], None)  # this adapter has dropout
        assert {json.loads(file.read_text())["fingerprint"] for file in sealed} == {hello["fingerprint"]}
    assert not any("mem_gb" in line for line in told)


# The first batch of each stage, as the plain way pads it: of every row the mask, and what is learned.
PADDED = """
import json
from pathlib import Path
from transformers import AutoModelForCausalLM
from remote_payload import dpo, sft, tokens, training
from remote_payload.contract import Stage
from remote_payload.layout import Layout
from remote_payload.rows import read_dpo, read_sft
from remote_payload.tokenizer import load_tokenizer
layout = Layout(Path())
job, tokenizer = layout.read_settled(), load_tokenizer(layout)
rows = tokens.samples(tokenizer, read_sft(layout, job.sft_data).rows, job)
pairs = tokens.pairs(tokenizer, read_dpo(layout, job.dpo_data).rows, job)
for stage, module, made in ((Stage.SFT, sft, rows), (Stage.DPO, dpo, pairs)):
    model = training.attach_adapter(AutoModelForCausalLM.from_pretrained("model"), job, None)
    settings = training.arguments(layout, job, stage, job.sft, None) | {"per_device_train_batch_size": 16}
    trainer = module.make_trainer(model, tokenizer, made, settings, None)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(16)])
    learned = (batch["labels"] != -100).long() if stage is Stage.SFT else batch["completion_mask"]
    print("found " + json.dumps([batch["attention_mask"].tolist(), learned.tolist()]))
"""


def test_padding_is_on_the_right_and_never_learned(make_box: MakeBox) -> None:
    """In SFT and DPO a row begins with its tokens; what fills it up is neither read nor learned."""
    box = make_box()
    box.prepare()

    printed = box.evaluate(PADDED)

    found = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("found ")]
    for masks, learned in found:
        for mask, row in zip(masks, learned, strict=True):
            assert mask == sorted(mask, reverse=True)
            assert row[sum(mask) - 1] and not any(row[sum(mask) :])  # its end is learned, nothing behind it
        assert any(0 in mask for mask in masks)
    assert len(found) == 2


# How torch's allocator counts on two cards: the peak of each since it was reset, from what it holds then.
CARDS = """
import json, torch
from remote_payload.callback import peak_memory
peaks, held = [30e9, 41.26e9], [16e9, 17e9]
torch.cuda.device_count = lambda: 2
torch.cuda.max_memory_allocated = lambda card: peaks[card]
def reset(card):
    peaks[card] = held[card]
torch.cuda.reset_peak_memory_stats = reset
print(json.dumps([peak_memory(), peak_memory()]))
"""


def test_memory_is_the_fullest_cards_since_the_last_step(make_box: MakeBox) -> None:
    """In GB; what one step took is no more in the figure of the next."""
    assert json.loads(make_box().evaluate(CARDS)) == [{"mem_gb": 41.26}, {"mem_gb": 17.0}]


DRIVERS = r"""
import json
from remote_payload.hello import driver_version
told = ["NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version: gcc 13.3.0",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023", "gVisor"]
print(json.dumps([driver_version(text) for text in told]))
"""


def test_the_driver_is_named_by_its_version(make_box: MakeBox) -> None:
    """Of the open kernel module and of the other; a file that names none is no error."""
    assert json.loads(make_box().evaluate(DRIVERS)) == ["580.159.04", "535.54.03", None]


def test_the_rate_rises_and_falls_as_a_cosine(trained: Box) -> None:
    """Of 12 steps 3 %, rounded up, warm up; from there it is half a cosine down to nearly nought."""
    rates = [step["lr"] for step in trained.events("step") if step["stage"] == "SFT"]

    assert rates == pytest.approx([0.0] + [1e-3 * (1 + math.cos(math.pi * k / 11)) / 2 for k in range(11)])


def test_newest_checkpoints_are_kept(trained: Box) -> None:
    """After the last step there are `keep` sealed checkpoints, the newest of the last step."""
    kept = sorted(p.name for p in trained.layout.stage(Stage.SFT).glob("checkpoint-*"))

    assert kept == ["checkpoint-12", "checkpoint-9"]


def test_dpo_without_sft(make_box: MakeBox) -> None:
    """A job without SFT aligns a fresh adapter against the base model."""
    box = make_box(rows=[], sft=None, sft_data=None, stages=[StagePlan(Stage.DPO, "nonce-dpo")])
    box.prepare()

    box.train(Stage.DPO)

    assert box.events("step")[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert len(box.events("step")) == 8


# Prints what the callback makes of made-up histories: None, or the exit code and the gate with which it ends the stage.
JUDGED = """
import json
from dataclasses import replace; from pathlib import Path; from types import SimpleNamespace
from remote_payload.callback import Progress; from remote_payload.contract import AdapterSource, Stage
from remote_payload.layout import Layout; from remote_payload.progress import Events
from remote_payload.script import ScriptFailed
layout = Layout(Path().resolve())
job = layout.read_job()

def judged(stage, history, steps, **changes):
    progress = Progress(layout, replace(job, **changes), stage, Events(layout.events), "mark")
    state = SimpleNamespace(global_step=len(history), max_steps=steps, num_input_tokens_seen=10, log_history=history,
                            is_world_process_zero=True)
    try:
        progress.on_log(None, state, None, logs=history[-1])
        progress.on_train_end(None, state, None)
    except ScriptFailed as failure:
        return [int(failure.code), str(failure).split(":")[0]]

def pairs(early, late, again):  # two epochs of 40 steps: the share told right before the last quarter of the first, ...
    figures = {"loss": 0.5, "rewards/margins": 0.2, "rewards/chosen": 0.1, "logps/chosen": -50.0}
    right = [early] * 30 + [late] * 10 + [again] * 40
    return [figures | {"epoch": (i + 1) / 40, "rewards/accuracies": share} for i, share in enumerate(right)]

def losses(first, last, steps=200):
    return [{"loss": first + (last - first) * i / steps} for i in range(steps)]

found = [
    judged(Stage.DPO, [{"loss": 0.6931}], 8),
    judged(Stage.DPO, [{"loss": 0.6990}], 8),
    judged(Stage.DPO, pairs(0.1, 0.9, 0.1), 80),
    judged(Stage.DPO, pairs(0.9, 0.5, 0.9), 80),
    judged(Stage.SFT, losses(1.5, 1.4), 200),
    judged(Stage.SFT, losses(1.4, 1.5), 200),
    judged(Stage.SFT, losses(1.4, 1.5), 201),
    judged(Stage.SFT, losses(1.4, 1.5), 200, start_from=AdapterSource("a", "0", "a")),
]
print(json.dumps(found))
"""


def test_what_ends_a_stage(make_box: MakeBox) -> None:
    """A first DPO loss other than ln 2, pairs told wrongly before anything was learned from them, and a loss that did
    not fall; not what comes before the end, nor what goes on with an earlier adapter."""
    box = make_box(batch_size=32)

    found = json.loads(box.evaluate(JUDGED).splitlines()[-1])

    dpo, sft = int(Exit.DPO_GATE), int(Exit.NOT_LEARNING)
    assert found[:4] == [None, [dpo, "gate first_dpo_loss"], None, [dpo, "gate reward_accuracy"]]
    assert found[4:] == [None, [sft, "gate loss_fall"], None, None]


def test_divergence_ends_the_stage(make_box: MakeBox, trained: Box) -> None:
    """A loss that is no number any more is reported as such and ends the stage with exit 40."""
    box = ready(make_box, trained, Stage.SFT, sft=StageTraining(epochs=2, lr=1e30))

    failed = box.call("sft")

    assert failed.returncode == Exit.DIVERGED, failed.stderr
    assert box.events("error")[0]["code"] == Exit.DIVERGED
    assert not box.layout.result(Stage.SFT).exists()


@pytest.mark.parametrize("stage", [Stage.SFT, Stage.DPO])
def test_other_data_than_prepare_counted_is_not_trained(make_box: MakeBox, trained: Box, stage: Stage) -> None:
    """A power cut may shorten a file that was uploaded just before; what is left of it would train in silence."""
    box = ready(make_box, trained, stage)
    source = box.job.sft_data if stage is Stage.SFT else box.job.dpo_data
    assert source
    file = box.layout.file(source.path)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-4]))

    refused = box.call(stage.lower())

    assert refused.returncode == Exit.BAD_DATA
    assert f"{source.path}: is not the file the workstation sent" in box.events("error")[0]["msg"]
    assert not box.events("step")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_FSDP", "1"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("LOCAL_RANK", "0"),
    ],
)
def test_launchers_are_refused(name: str, value: str) -> None:
    """Training under accelerate launch, DeepSpeed, FSDP or torchrun is refused with the reason."""
    with pytest.raises(ScriptFailed, match=name) as failure:
        placement.refuse_launchers({name: value, "PATH": "/bin"}, "single")

    assert failure.value.code is Exit.PLACEMENT


def test_a_launcher_really_stops_the_stage(make_box: MakeBox, trained: Box) -> None:
    """The refusal is where the training starts, not only in a rule beside it."""
    box = ready(make_box, trained, Stage.SFT)

    refused = box.call("sft", ACCELERATE_USE_FSDP="true")

    assert refused.returncode == Exit.PLACEMENT
    assert "FSDP" in refused.stderr


@pytest.mark.parametrize(
    ("mode", "cards", "rank", "expected"),
    [
        ("auto_map", 0, 0, None),
        ("auto_map", 1, 0, {"": 0}),
        ("auto_map", 8, 0, "auto"),
        ("single", 8, 0, {"": 0}),
        ("ddp", 8, 5, {"": 5}),
        ("ddp", 0, 1, None),
    ],
)
def test_device_map(mode: str, cards: int, rank: int, expected: object) -> None:
    """Where the model lies follows from the placement and the cards; with several cards it is never left open."""
    assert placement.device_map(mode, cards, rank) == expected


def test_ranks_may_be_launched_for_ddp_alone() -> None:
    """Several processes are what ddp means; every other launcher is refused for it too."""
    placement.refuse_launchers({"LOCAL_RANK": "1"}, "ddp")
    with pytest.raises(ScriptFailed, match="FSDP"):
        placement.refuse_launchers({"LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "1"}, "ddp")


def test_rows_are_shared_evenly() -> None:
    """A global batch that the cards cannot share is refused with what would do, instead of becoming another batch."""
    assert placement.share(32, 8) == 4
    with pytest.raises(ScriptFailed, match="multiple of 8") as failure:
        placement.share(30, 8)

    assert failure.value.code is Exit.BAD_CONFIG


@pytest.mark.parametrize("mapped", [None, {"": 0}, {"model": 0, "lm_head": 0}])
def test_replicas_are_refused(mapped: dict[str, object] | None) -> None:
    """Several visible cards and a model on one of them would become broken replicas."""
    with pytest.raises(ScriptFailed, match="would replicate it"):
        placement.refuse_replicas(mapped, cards=8)
    placement.refuse_replicas({"model": 0, "lm_head": 1}, cards=8)


@pytest.mark.parametrize(
    ("batch", "asked", "device", "expected"),
    [
        (32, None, "cuda", 16),
        (32, None, "cpu", 8),
        (32, 12, "cuda", 8),
        (30, 8, "cpu", 6),
        (7, 4, "cpu", 1),
        (2, 8, "cpu", 2),
    ],
)
def test_micro_batch_divides_the_global_one(batch: int, asked: int | None, device: str, expected: int) -> None:
    """However many rows one forward takes, the optimizer sees the global batch."""
    assert placement.micro_batch(batch, asked, device) == expected
