"""The box's side of test_speed.py: trains both ways on the model in ./model and prints what differs.

One line of JSON a stage: the largest difference of a step's loss, and the smallest cosine between the two gradients of
an adapter tensor in any step. Then one line about how the rows were cut.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from remote_payload import dpo, packing, sft, speed, training
from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Stage, StageTraining
from remote_payload.tokens import IGNORED, Pair, Sample

MODEL = Path("model")
STEPS, BATCH, LIMIT = 3, 6, 120  # the limit makes two or three rows of a step
SETTINGS = {
    "output_dir": "out",
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "bf16": False,
    "use_cpu": True,
    "activation_checkpointing": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "seed": 1,
    "data_seed": 1,
    "report_to": [],
    "disable_tqdm": True,
}
JOB = JobFile(
    "j00001", 1, "tiny", ModelSource("tiny"), [], Integration("tag", 0, 0), Lora(r=4, alpha=8), [],
    sft=StageTraining(), dpo=StageTraining(), batch_size=BATCH,
)  # fmt: skip


class Gradients(transformers.TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})


def words(low, high):
    return torch.randint(5, 400, (int(torch.randint(low, high, ())),)).tolist()


def samples():
    made = [(words(3, 40), words(1, 30)) for _ in range(STEPS * BATCH)]
    return [Sample(p + a, [IGNORED] * len(p) + a, False) for p, a in made]


def pairs():
    return [Pair(words(1, 30), words(1, 25), words(1, 25), False) for _ in range(STEPS * BATCH)]


def train(stage, way, rows, longest, limit):
    job = replace(JOB, speed=way)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = training.attach_adapter(model, job, None)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, and then nothing reaches A
            torch.nn.init.normal_(weight, 0, 0.02)
    room = speed.quicken(model, job, longest, limit).room
    micro = BATCH if room else 2
    settings = SETTINGS | {"per_device_train_batch_size": micro, "gradient_accumulation_steps": BATCH // micro}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if stage is Stage.SFT:
        trainer = sft.make_trainer(model, tokenizer, rows, settings, room)
    else:
        trainer = dpo.make_trainer(model, tokenizer, rows, settings | {"beta": 0.1}, room)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], gradients.steps


def compare(stage, rows, longest=60, limit=LIMIT):
    plain, theirs = train(stage, "plain", rows, longest, limit)
    fast, ours = train(stage, "fast", rows, longest, limit)
    apart = max(abs(a - b) for a, b in zip(plain, fast, strict=True))
    cosines = [
        torch.cosine_similarity(a[name].double().flatten(), b[name].double().flatten(), 0).item()
        for a, b in zip(theirs, ours, strict=True)
        for name in a
    ]
    print("found " + json.dumps([stage, apart, min(cosines), len(cosines)]))


def main():
    torch.manual_seed(0)
    compare(Stage.SFT, samples())
    compare(Stage.DPO, pairs())
    print("found " + json.dumps(packing.micro_batches([900, 30, 400, 500, 100, 2000], 1000)))


if __name__ == "__main__":
    main()
