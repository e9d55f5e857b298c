"""Supervised fine-tuning: a LoRA on the base model, fresh or going on, on the ids that `prepare` counted."""

from __future__ import annotations

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from remote_payload import fingerprint, script, tokens, training
from remote_payload.contract import Exit, JobFile, Stage
from remote_payload.layout import Layout
from remote_payload.progress import Events
from remote_payload.ranks import Rank
from remote_payload.rows import read_sft
from remote_payload.script import ScriptFailed
from remote_payload.tokenizer import load_tokenizer


def sft(layout: Layout, job: JobFile, events: Events) -> Exit:
    if job.sft is None or job.sft_data is None:
        raise ScriptFailed(Exit.BAD_CONFIG, "job.json asks for SFT without its settings or data")
    settings = training.arguments(layout, job, Stage.SFT, job.sft)
    tokenizer = load_tokenizer(layout)
    parent = layout.parent(job, Stage.SFT)
    samples = tokens.samples(tokenizer, read_sft(layout, job.sft_data).rows, job)
    trainer = SFTTrainer(
        model=training.attach_adapter(training.load_base(layout, job), job, parent),
        args=SFTConfig(**settings, packing=False, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_dict({"input_ids": [s.ids for s in samples], "labels": [s.labels for s in samples]}),
        processing_class=tokenizer,
    )
    mark = fingerprint.of(layout, job, job.sft, job.sft_data.sha256, parent, Rank.own().size)
    return training.train(trainer, layout, job, Stage.SFT, events, mark)


if __name__ == "__main__":
    sys.exit(script.run(Stage.SFT, sft))
