"""Direct preference optimisation: the SFT adapter goes on, against a frozen copy of itself as the reference.

Without an SFT stage in the job it goes on with start_from's adapter, or a fresh one, whose reference is the base model.
"""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from remote_payload import fingerprint, script, speed, tokens, training
from remote_payload.contract import Exit, JobFile, Stage
from remote_payload.hello import hello
from remote_payload.layout import Layout
from remote_payload.packing import PairSteps
from remote_payload.progress import Events
from remote_payload.ranks import Rank
from remote_payload.recompute import Room
from remote_payload.rows import read_dpo
from remote_payload.script import ScriptFailed
from remote_payload.steps import PackedDPO
from remote_payload.tokenizer import load_tokenizer
from remote_payload.tokens import Pair


class PairTrainer(DPOTrainer):  # type: ignore[misc]  # trl is untyped
    """DPOTrainer on pairs that are ids already: those `prepare` counted, not what the library would tokenize."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def dpo(layout: Layout, job: JobFile, events: Events) -> Exit:
    if job.dpo is None or job.dpo_data is None:
        raise ScriptFailed(Exit.BAD_CONFIG, "job.json asks for DPO without its settings or data")
    tokenizer = load_tokenizer(layout)
    pairs = tokens.pairs(tokenizer, read_dpo(layout, job.dpo_data).sound(), job)
    parent = layout.parent(job, Stage.DPO)
    model = training.attach_adapter(training.load_base(layout, job), job, parent)
    longest = max(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)
    way = speed.quicken(model, job, longest, training.remembered_micro_batch(layout, Stage.DPO))
    settings = training.arguments(layout, job, Stage.DPO, job.dpo, way.room) | {"beta": job.dpo.beta}
    trainer = make_trainer(model, tokenizer, pairs, settings, way.room)
    mark = fingerprint.of(layout, job, job.dpo, job.dpo_data.sha256, parent, Rank.own().size)
    hello(events, mark, way)
    return training.train(trainer, layout, job, Stage.DPO, events, mark)


def make_trainer(
    model: PeftModel, tokenizer: Any, pairs: list[Pair], settings: dict[str, Any], room: Room | None
) -> DPOTrainer:
    padded = DataCollatorForPreference(tokenizer.pad_token_id)
    return (PackedDPO if room else PairTrainer)(
        model=model,
        args=DPOConfig(**settings, loss_type=["sigmoid"]),
        data_collator=PairSteps(padded, room.tokens) if room else padded,
        train_dataset=Dataset.from_dict(
            {
                "prompt_ids": [p.prompt for p in pairs],
                "chosen_ids": [p.chosen for p in pairs],
                "rejected_ids": [p.rejected for p in pairs],
            }
        ),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    sys.exit(script.run(Stage.DPO, dpo))
