"""The training as a person would write it with TRL, without a line of ours: `python trl_side.py ROOT sft|dpo`.

Reads job.json as plain JSON, trains on the same rows with the same settings and seed, prints the losses.
"""

import json
import sys
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

root, stage = Path(sys.argv[1]), sys.argv[2]
job = json.loads((root / "run" / "job.json").read_text())
trainer, config = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[stage]
tokenizer = AutoTokenizer.from_pretrained(root / "model")
trained = trainer(
    model=AutoModelForCausalLM.from_pretrained(root / "model", dtype="float32"),
    args=config(
        output_dir=str(root / "trl"),
        num_train_epochs=job[stage]["epochs"],
        learning_rate=job[stage]["lr"],
        per_device_train_batch_size=job["micro_batch_size"],
        gradient_accumulation_steps=job["batch_size"] // job["micro_batch_size"],
        max_length=job["max_length"],
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        seed=job["seed"],
        data_seed=job["seed"],
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    ),
    train_dataset=load_dataset(
        "json", data_files=str(root / job[f"{stage}_data"]["path"]), split="train", cache_dir=str(root / "datasets")
    ),
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=job["lora"]["r"],
        lora_alpha=job["lora"]["alpha"],
        lora_dropout=job["lora"]["dropout"],
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    ),
)
trained.train()
print(json.dumps([line["loss"] for line in trained.state.log_history if "loss" in line]))
