"""Does the fast way train the same model in bf16? Losses and first gradients of a training that learns, on this card.

    python tests/benchmarks/gpu/bench_equality.py [--steps 50]

A small random model learns what its samples have in common, three times: plainly, plainly with another batch split,
and fast. One JSON line each for the latter two, against the first: the difference of the first loss, the mean and the
largest after it, and the smallest cosine between the first gradients of any adapter tensor. The second line is the
noise that bf16 has anyway; the fast way may not have more.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import bench_training as bench  # first: it sets up the environment
import torch
import transformers

from remote_payload import contract, sft, speed, training
from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Prepared, Stage, StageTraining
from remote_payload.layout import Layout
from remote_payload.tokens import Sample

JOB = JobFile(
    "j00001", 1, "bench", ModelSource("bench"), [], Integration("bench", 0, 0), Lora(r=64, alpha=128), [],
    sft=StageTraining(lr=1e-3), batch_size=bench.BATCH, micro_batch_size=16,
)  # fmt: skip


class First(transformers.TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


def learn(job: JobFile, steps: int, shape: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Every loss, and the first gradients. The samples repeat a few phrases, which can be learned."""
    rng = random.Random(0)
    phrases = [[rng.randrange(3, 900) for _ in range(rng.randint(20, 80))] for _ in range(40)]
    texts = [list(chain(*rng.choices(phrases, k=rng.randint(1, 10)))) for _ in range(steps * bench.BATCH)]
    model = training.attach_adapter(bench.build(shape), job, None)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, and then nothing reaches A
            torch.nn.init.normal_(weight, 0, 0.01)
    room = speed.quicken(model, job, max(map(len, texts)), None)
    with tempfile.TemporaryDirectory() as root:
        layout = Layout(Path(root))
        layout.run.mkdir()
        contract.write_whole(layout.prepared, contract.dump(Prepared(True, "", 0, 0, steps={Stage.SFT: steps})))
        settings = training.arguments(layout, job, Stage.SFT, StageTraining(lr=1e-3), room) | {"save_strategy": "no"}
        trainer = sft.make_trainer(model, bench.tokenizer(), [Sample(x, x, False) for x in texts], settings, room)
        first = First()
        trainer.add_callback(first)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], first.gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shape", default="small")
    asked = parser.parse_args()
    plain = replace(JOB, speed="plain")
    losses, gradients = learn(plain, asked.steps, asked.shape)
    for name, job in (("plain, split 4 x 8", replace(plain, micro_batch_size=8)), ("fast", JOB)):
        others, theirs = learn(job, asked.steps, asked.shape)
        off = [abs(a - b) for a, b in zip(losses, others, strict=True)]
        cosines = [torch.cosine_similarity(gradients[n].flatten(), theirs[n].flatten(), 0).item() for n in gradients]
        line = {
            "variant": name, "first": round(off[0], 6), "mean": round(sum(off[1:]) / len(off[1:]), 6),
            "largest": round(max(off), 6), "cosine": round(min(cosines), 6),
            "losses": [round(x, 4) for x in (losses[0], losses[-1], others[-1])],
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
