"""What the template tests ask of the box python, run in a box's root: cases.json in, one answer a case printed.

A case is (template as TRL ships it, reasoning, rows, kind); its answer is what each row trains, as text, or why not.
"""

from __future__ import annotations

import importlib.resources
import itertools
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from remote_payload import reasoning, templates, tokens


def answer(name: str | None, asked: str, rows: list[dict[str, Any]], kind: str) -> list[Any] | str:
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = shipped(name) if name else None
    tokenizer.chat_template = templates.for_training(tokenizer)
    answers = [text for row in rows for text in reasoning.answers(row)]
    try:
        settled = reasoning.settled(asked, templates.opens_reasoning(tokenizer), answers)
        if kind == "dpo":
            pairs = tokens.whole_pairs(tokenizer, rows, settled)
            return [[tokenizer.decode(ids) for ids in (pair.chosen, pair.rejected)] for pair in pairs]
        return [trained(tokenizer, sample) for sample in tokens.whole_samples(tokenizer, rows, settled)]
    except (reasoning.Unclear, tokens.RowRefused) as refusal:
        return str(refusal)


def trained(tokenizer: Any, sample: tokens.Sample) -> list[str]:
    """One piece of text for every stretch of labels."""
    stretches = itertools.groupby(sample.labels, key=lambda label: label != tokens.IGNORED)
    return [tokenizer.decode(list(ids)) for learned, ids in stretches if learned]


def delivered(name: str) -> dict[str, Any]:
    """What a template asks for an answer with, as shipped and as delivered under reasoning: none; and a whole turn."""
    tokenizer = AutoTokenizer.from_pretrained("model")
    found: dict[str, Any] = {}
    turns = [{"role": "user", "content": "up?"}, {"role": "assistant", "content": "yes"}]
    for which, template in (("shipped", shipped(name)), ("none", reasoning.without_opening(shipped(name)))):
        for part, messages, asks in (("prompt", turns[:1], True), ("turn", turns, False)):
            found[f"{which} {part}"] = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=asks
            )
    return found


def beyond_ours(name: str, row: dict[str, Any]) -> str | None:
    """What TRL's own SFTTrainer trains of a row after everything that we train; None where the rest differs."""
    tokenizer = AutoTokenizer.from_pretrained("model")
    tokenizer.chat_template = shipped(name)
    settings = SFTConfig(output_dir="trl", use_cpu=True, bf16=False, report_to=[], disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained("model")
    dataset = Dataset.from_list([row])
    (theirs,) = SFTTrainer(model=model, args=settings, train_dataset=dataset, processing_class=tokenizer).train_dataset
    (ours,) = tokens.whole_samples(tokenizer, [row], "keep")
    length = len(ours.ids)
    if (theirs["input_ids"][:length], theirs["labels"][:length]) != (ours.ids, ours.labels):
        return None
    return str(tokenizer.decode(theirs["input_ids"][length:]))


def shipped(name: str) -> str:
    return (importlib.resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text()


asked = json.loads(Path("cases.json").read_text())
print(
    json.dumps(
        {
            "cases": [answer(*case) for case in asked["cases"]],
            "beyond ours": [beyond_ours(*case) for case in asked["trl"]],
            "delivered": {name: delivered(name) for name in asked["delivered"]},
        }
    )
)
