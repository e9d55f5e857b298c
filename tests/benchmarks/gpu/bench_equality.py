"""Does the fast way train the same model in bf16? On this card, with the ECB's rates, held against bf16's own noise.

    python tests/benchmarks/gpu/bench_equality.py [--steps 100] [--shape small]

A random model first learns the rates with all of its weights, so that its gradients mean something; other rows then
train a LoRA on it: plainly, plainly with other batch splits, fast, and plainly in fp32. One JSON line for each of them,
against the first and against fp32: the difference of the first loss, the mean and the largest of the 50 steps after it,
and the smallest cosine between the first gradients of any adapter tensor. Then one each for what the whole run came to
on 400 held-out rows, scored as the product scores them: the NLL, and how much less than the plain one's it is, with its
95 % interval. What the other splits show is the noise that bf16 has anyway, and fp32 says which of two roundings is
nearer to what both stand for.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import bench_training as bench  # first: it sets up the environment
import ecb
import torch
import transformers
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer

from remote_payload import contract, sft, speed, tokens, training
from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Prepared, Stage, StageTraining
from remote_payload.held_out import nll_gain
from remote_payload.layout import Layout
from remote_payload.likelihood import Question, RowScore, answer, ask
from remote_payload.tokens import Sample

COMPARED = 50  # steps after the first
GROUND_STEPS, GROUND_BATCH = 400, 32  # of the learning with all weights
SPLITS = (1, 8)  # micro batches a step; the plain variant has 2
JOB = JobFile(
    "j00001", 1, "bench", ModelSource("bench"), [], Integration("bench", 0, 0), Lora(r=64, alpha=128), [],
    sft=StageTraining(lr=2e-4), batch_size=bench.BATCH, micro_batch_size=16, reasoning="keep",
)  # fmt: skip

Weights = dict[str, torch.Tensor]


@dataclass
class Learned:
    """What one training came to: every loss, the first gradients, and the score of each held-out row."""

    losses: list[float]
    gradients: Weights
    scores: list[RowScore]


class First(transformers.TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: Weights = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 0:
            self.gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


def grounded(shape: str, samples: list[Sample]) -> Weights:
    """Weights that know what rates look like: AdamW on all of them, in fp32 under autocast."""
    model = bench.build(shape).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    for step in range(GROUND_STEPS):
        batch = [samples[(step * GROUND_BATCH + i) % len(samples)].ids for i in range(GROUND_BATCH)]
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch], device=model.device)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=real, labels=ids.masked_fill(real == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps({"grounded": round(loss.item(), 4)}), flush=True)
    return {
        name: weight.to(torch.bfloat16 if bench.CUDA else torch.float32) for name, weight in model.state_dict().items()
    }


def base(shape: str, weights: Weights) -> Any:
    model = bench.build(shape)
    model.load_state_dict(weights)
    return model


def learn(
    job: JobFile, steps: int, shape: str, weights: Weights, samples: list[Sample], asked: list[Question], precise: bool
) -> Learned:
    """`precise`: in fp32, from the same rounded weights."""
    untrained = base(shape, weights)
    model = training.attach_adapter(untrained.float() if precise else untrained, job, None)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, and then nothing reaches A
            torch.nn.init.normal_(weight, 0, 0.001)
    room = speed.quicken(model, job, max(len(sample.ids) for sample in samples), None).room
    with tempfile.TemporaryDirectory() as root:
        layout = Layout(Path(root))
        layout.run.mkdir()
        contract.write_whole(layout.prepared, contract.dump(Prepared(True, "", 0, 0, steps={Stage.SFT: steps})))
        settings = training.arguments(layout, job, Stage.SFT, StageTraining(lr=2e-4), room)
        settings |= {"save_strategy": "no"} | ({"bf16": False} if precise else {})
        trainer = sft.make_trainer(model, bench.tokenizer(), samples, settings, room)
        first = First()
        trainer.add_callback(first)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    plain = training.attach_adapter(base(shape, weights), job, None)
    set_peft_model_state_dict(plain, get_peft_model_state_dict(model))
    return Learned(losses, first.gradients, [answer(plain.eval(), question) for question in asked])


def against(plain: Learned, other: Learned) -> dict[str, Any]:
    off = [abs(a - b) for a, b in zip(plain.losses, other.losses, strict=True)][: COMPARED + 1]
    cosines = [
        torch.cosine_similarity(plain.gradients[n].double().flatten(), other.gradients[n].double().flatten(), 0).item()
        for n in plain.gradients
    ]
    return {
        "first": round(off[0], 6),
        "mean": round(sum(off[1:]) / len(off[1:]), 6),
        "largest": round(max(off), 6),
        "cosine": round(min(cosines), 6),
        "losses": [round(x, 4) for x in (plain.losses[0], plain.losses[-1], other.losses[-1])],
    }


def nll(scores: list[RowScore]) -> float:
    return round(sum(row.nll for row in scores) / sum(row.tokens for row in scores), 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--shape", choices=bench.SHAPES, default="small")
    parser.add_argument("--held-out", type=int, default=400)
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(ecb.NANO)
    rows = ecb.rows(asked.steps * bench.BATCH + 3200, 0, asked.held_out)
    samples = tokens.samples(tokenizer, rows["sft"], JOB)
    questions = ask(tokenizer, rows["eval"], JOB)
    weights = grounded(asked.shape, samples[asked.steps * bench.BATCH :])
    samples = samples[: asked.steps * bench.BATCH]

    plain = replace(JOB, speed="plain")
    began = time.monotonic()
    variants = {
        "plain": plain,
        **{
            f"plain, split {n} x {bench.BATCH // n}": replace(plain, micro_batch_size=bench.BATCH // n)
            for n in (1, 4, 8)
        },
        "fp32": plain,
        "fast": JOB,
    }
    learned = {
        name: learn(job, asked.steps, asked.shape, weights, samples, questions, precise=name == "fp32")
        for name, job in variants.items()
    }
    for standard in ("plain", "fp32"):
        for name, found in learned.items():
            if name != standard:
                told = {"variant": name, "against": standard, **against(learned[standard], found)}
                print(json.dumps(told), flush=True)
    scored = {name: found.scores for name, found in learned.items()}
    untrained = base(asked.shape, weights).eval()
    scored["before"] = [answer(untrained, question) for question in questions]
    for name, scores in scored.items():
        less = {key: round(value, 6) for key, value in asdict(nll_gain(scores, scored["plain"])).items()}
        print(
            json.dumps({"held out": name, "rows": len(scores), "nll": nll(scores), "less than plain": less}), flush=True
        )
    print(json.dumps({"seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
