"""What SFT and DPO share: load the base model, attach the adapter, train with resume, leave adapter and result."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from remote_payload import checkpoints, collective, contract, placement
from remote_payload.callback import Progress
from remote_payload.contract import Exit, JobFile, Stage, StageTraining
from remote_payload.fingerprint import Fingerprint
from remote_payload.layout import Layout
from remote_payload.progress import Events
from remote_payload.ranks import Rank, conclude
from remote_payload.recompute import Room
from remote_payload.script import ScriptFailed, is_out_of_disk


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_base(layout: Layout, job: JobFile) -> Any:
    """The base model, bf16 on cards and fp32 without: a CPU's bf16 is slow and the demo's models are small."""
    placed, rank = placement.decided(layout, job), Rank.own()
    if placed is None:
        raise ScriptFailed(Exit.PLACEMENT, f"placement {job.placement} is not decided; run remote_payload.place first")
    placement.refuse_launchers(os.environ, placed.mode)
    if placed.mode == "single":
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    transformers.logging.disable_progress_bar()
    collective.join(rank)
    cards = torch.cuda.device_count()
    spread = placement.device_map(placed.mode, cards, rank.number)
    dtype = torch.bfloat16 if cards else torch.float32
    if spread == "auto" and cards > 1:
        spread = head_on_first(layout.model, dtype)
    model = AutoModelForCausalLM.from_pretrained(
        layout.model, dtype=dtype, device_map=spread, attn_implementation="sdpa", local_files_only=True
    )
    if placed.mode != "ddp":
        placement.refuse_replicas(getattr(model, "hf_device_map", None), cards)
    print(f"base model: {dtype}, {cards} cards, device map {spread}, {model.num_parameters():,} parameters", flush=True)
    return model


def head_on_first(folder: Path, dtype: torch.dtype, memory: dict[int, int] | None = None) -> dict[str, int | str]:
    """What device_map="auto" makes of the cards, but with the head on the first one.

    There the rows are and the trainer counts; a loss that lies on the last card ends the first step with "expected all
    tensors to be on the same device" (trl 1.16.0 on two H100). `memory`: bytes by card, else what the cards have free.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.tie_weights()
    whole = list(model._no_split_modules or [])
    balanced = memory or get_balanced_memory(model, dtype=dtype, no_split_module_classes=whole)
    found = infer_auto_device_map(model, max_memory=balanced, dtype=dtype, no_split_module_classes=whole)
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    return {**found, head: 0}


def attach_adapter(model: Any, job: JobFile, adapter: Path | None) -> PeftModel:
    """A trainable LoRA on `model`: the one at `adapter` going on, or a fresh one.

    Raises ScriptFailed (10) when anything but the adapter would be trained, or nothing.
    """
    set_seed(job.seed)
    if adapter:
        peft = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    else:
        lora = job.lora
        peft = get_peft_model(
            model,
            LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
    # PEFT looks this name up at every save, on the hub if it must; the folder is the answer that needs no network.
    peft.peft_config["default"].base_model_name_or_path = model.config.name_or_path
    trained = [name for name, weight in peft.named_parameters() if weight.requires_grad]
    if not trained or any("lora_" not in name for name in trained):
        raise ScriptFailed(Exit.BAD_CONFIG, f"{len(trained)} trainable weights, expected those of the adapter alone")
    return peft


def arguments(
    layout: Layout, job: JobFile, stage: Stage, training: StageTraining, room: Room | None = None
) -> dict[str, Any]:
    """The settings SFTConfig and DPOConfig have in common; `room` is what a forward may take on the fast way."""
    on_card = device() == "cuda"
    rank = Rank.own()
    share = placement.share(job.batch_size, rank.size)
    if room:
        micro = share  # the loader's batch is a whole step; the trainer cuts it into rows by their tokens
    else:
        micro = placement.micro_batch(share, remembered_micro_batch(layout, stage) or job.micro_batch_size, device())
    accumulated = share // micro
    if rank.is_first:
        print(f"{stage}: global batch {job.batch_size} = {rank.size} x {micro} x {accumulated} accumulated", flush=True)
    return {
        "output_dir": str(layout.stage(stage)),
        "max_steps": planned_steps(layout, stage),
        "max_length": job.max_length,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": training.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,  # below 1 it is a share of the steps
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused" if on_card else "adamw_torch",
        # Without autocast everything is bf16 but what rounds by itself: the fused adapter and the kernels' insides.
        "bf16": on_card and not (room and job.lora.dropout == 0),
        "use_cpu": not on_card,
        # It buys card memory for time; a CPU run is small and short of time.
        "activation_checkpointing": room.recompute if room else on_card,
        "activation_checkpointing_kwargs": {"use_reentrant": False},  # the reentrant kind loses gradients of LoRA
        "save_strategy": "steps",
        "save_steps": job.checkpoint_every,
        "save_total_limit": None,  # only sealed checkpoints may be counted, so the callback prunes
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would print a NaN as 0.0
        # The next step is packed and pinned while the card works; a CPU has nothing to spare for it.
        "dataloader_num_workers": 1 if on_card else 0,
        "include_num_input_tokens_seen": "all" if room else "non_padding",  # packed rows have no padding
        "seed": job.seed,
        "data_seed": job.seed,
        "ddp_backend": None if on_card or rank.size == 1 else "gloo",
        "ddp_find_unused_parameters": False,  # every LoRA weight is used in every forward
        "ddp_broadcast_buffers": False,  # they are frozen, and equal from the start
        "report_to": [job.report_to] if job.report_to else [],
        "disable_tqdm": True,
    }


def train(trainer: Any, layout: Layout, job: JobFile, stage: Stage, events: Events, mark: Fingerprint) -> Exit:
    """Run `trainer` from the newest whole checkpoint to its last step, then leave the adapter and result.json.

    Returns STOPPED after a checkpoint when asked to stop. Raises ScriptFailed: 40, 42 from the gates, 50 when the
    checkpoints are another training's, 70 when memory is short (half the micro batch is remembered for the next try),
    71 when the disk is full, 72 when another rank is lost.
    """
    rank = Rank.own()
    progress = Progress(layout, job, stage, events, mark)
    trainer.add_callback(progress)
    trainer.remove_callback(transformers.PrinterCallback)  # the callback prints one readable line a step instead
    own = resume_point(layout, stage, events, mark) if rank.is_first else None
    began = time.monotonic()
    try:
        with collective.exchanging():
            newest = collective.from_first(own)
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except torch.OutOfMemoryError as error:
        tokens = getattr(trainer.data_collator, "limit", None)  # on the fast way
        halved = max(1, (tokens or trainer.args.per_device_train_batch_size) // 2)
        contract.write_whole(_micro_batch_file(layout, stage), str(halved))
        less = f"{halved} {'tokens' if tokens else 'rows'} a forward"
        raise ScriptFailed(Exit.OUT_OF_MEMORY, f"out of card memory; next try with {less}") from error
    except Exception as error:
        full = is_out_of_disk(error, layout.run)
        if rank.is_first:
            checkpoints.drop_unsealed(layout.stage(stage))
        if full:
            raise ScriptFailed(Exit.OUT_OF_DISK, f"the disk is full: {error}") from error
        raise
    collective.leave()
    if trainer.state.global_step < trainer.args.max_steps:
        return conclude(Exit.STOPPED)
    if not rank.is_first:
        return conclude(Exit.OK)
    save_adapter(trainer.model, layout.adapter(stage), job.model.name)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    result = {
        "outputs": sorted(p.relative_to(layout.root).as_posix() for p in layout.adapter(stage).iterdir()),
        "steps": trainer.state.global_step,
        "metrics": {
            "loss_first": losses[0],
            "loss_last": losses[-1],
            "tokens": float(trainer.state.num_input_tokens_seen),
            "seconds": round(time.monotonic() - began, 3),
        },
    }
    contract.write_whole(layout.result(stage), json.dumps(result))
    return conclude(Exit.OK)


def resume_point(layout: Layout, stage: Stage, events: Events, mark: Fingerprint) -> Path | None:
    """The newest whole checkpoint, told; the damaged newer ones are set aside, told too. Raises ScriptFailed (50)."""
    newest, damaged = checkpoints.newest_whole(layout.stage(stage), mark)
    for folder in damaged:
        events.emit("warn", msg=f"damaged checkpoint set aside as {folder.name}")
    if newest:
        path = newest.relative_to(layout.root).as_posix()
        events.emit("resume", step=int(newest.name.removeprefix(checkpoints.PREFIX)), path=path)
    return newest


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """The trained adapter as two files that depend on nothing but the training: no path of this box, no set order."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, selected_adapters=["default"])
    for extra in (p for p in partial.iterdir() if p.name not in ("adapter_model.safetensors", "adapter_config.json")):
        extra.unlink()
    config = json.loads((partial / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    contract.write_whole(partial / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def planned_steps(layout: Layout, stage: Stage) -> int:
    """As `prepare` derived them. Raises ScriptFailed (20) when prepare has not passed: its gates guard the money."""
    prepared = layout.read_prepared()
    if not prepared.ok:
        raise ScriptFailed(Exit.BAD_DATA, "prepare has not passed; nothing is trained before it does")
    return prepared.steps[stage]


def remembered_micro_batch(layout: Layout, stage: Stage) -> int | None:
    """What a forward may take since memory was short: rows, or tokens on the fast way."""
    file = _micro_batch_file(layout, stage)
    return int(file.read_text()) if file.exists() else None


def _micro_batch_file(layout: Layout, stage: Stage) -> Path:
    return layout.stage(stage) / "micro_batch"
