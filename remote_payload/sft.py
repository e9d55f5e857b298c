"""Supervised fine-tuning: a LoRA on the base model, fresh or going on, on the ids that `prepare` counted."""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from remote_payload import fingerprint, script, speed, tokens, training
from remote_payload.contract import Exit, JobFile, Stage
from remote_payload.hello import hello
from remote_payload.layout import Layout
from remote_payload.packing import SftSteps
from remote_payload.progress import Events
from remote_payload.ranks import Rank
from remote_payload.recompute import Room
from remote_payload.rows import read_sft
from remote_payload.script import ScriptFailed
from remote_payload.steps import PackedSFT
from remote_payload.tokenizer import load_tokenizer
from remote_payload.tokens import Sample


def sft(layout: Layout, job: JobFile, events: Events) -> Exit:
    if job.sft is None or job.sft_data is None:
        raise ScriptFailed(Exit.BAD_CONFIG, "job.json asks for SFT without its settings or data")
    tokenizer = load_tokenizer(layout)
    parent = layout.parent(job, Stage.SFT)
    samples = tokens.samples(tokenizer, read_sft(layout, job.sft_data).sound(), job)
    model = training.attach_adapter(training.load_base(layout, job), job, parent)
    longest = max(len(sample.ids) for sample in samples)
    way = speed.quicken(model, job, longest, training.remembered_micro_batch(layout, Stage.SFT))
    settings = training.arguments(layout, job, Stage.SFT, job.sft, way.room)
    trainer = make_trainer(model, tokenizer, samples, settings, way.room)
    mark = fingerprint.of(layout, job, job.sft, job.sft_data.sha256, parent, Rank.own().size)
    hello(events, mark, way)
    return training.train(trainer, layout, job, Stage.SFT, events, mark)


def make_trainer(
    model: PeftModel, tokenizer: Any, samples: list[Sample], settings: dict[str, Any], room: Room | None
) -> SFTTrainer:
    return (PackedSFT if room else SFTTrainer)(
        model=model,
        args=SFTConfig(**settings, packing=False, dataset_kwargs={"skip_prepare_dataset": True}),
        data_collator=SftSteps(room.tokens) if room else None,
        train_dataset=Dataset.from_dict({"input_ids": [s.ids for s in samples], "labels": [s.labels for s in samples]}),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    sys.exit(script.run(Stage.SFT, sft))
