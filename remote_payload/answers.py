"""GGUF stage, beside the first part where there are cards: the merged model's reference answers.

The file is made on the CPU and the answers on a card, so neither waits for the other. `evaluate` takes them from
run/gguf/answers.npz, or makes them itself where that is not there: on the CPU where the cards' memory is too little, so
that the file which was made comes home all the same, with answers to prove it by.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from remote_payload import host, prompts, reference, script
from remote_payload.contract import Exit, JobFile, Stage
from remote_payload.layout import Layout, final_adapter
from remote_payload.merge import merge_into, read_deltas
from remote_payload.progress import Events
from remote_payload.prompts import Prompt
from remote_payload.reference import Answer, Logs
from remote_payload.script import ScriptFailed

FILE = "answers.npz"  # under run/gguf


@contextlib.contextmanager
def beside(layout: Layout) -> Iterator[None]:
    """While the block runs, have the answers made by another process, where a card has nothing else to do.

    It may fail: `evaluate` then tries again, and says why.
    """
    if not torch.cuda.is_available():
        yield
        return
    python = os.environ.get("HOMEPORT_PYTHON") or sys.executable
    process = subprocess.Popen([python, "-m", "remote_payload.answers", "--root", str(layout.root)])
    try:
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()


def make(layout: Layout, job: JobFile, events: Events) -> Exit:
    save(layout.stage(Stage.GGUF) / FILE, *ask(layout, job, on_cards=torch.cuda.is_available()))
    return Exit.OK


def known(layout: Layout, job: JobFile) -> tuple[list[Answer], list[Logs]]:
    """The answers, and the base model's view of the same ids; read where they are made already. Raises ScriptFailed."""
    file = layout.stage(Stage.GGUF) / FILE
    if file.exists():
        return read(file)
    if torch.cuda.is_available():
        try:
            return ask(layout, job, on_cards=True)
        except torch.OutOfMemoryError as error:
            print(f"answers: the CPU makes them, for the cards have too little memory: {error}", flush=True)
    return ask(layout, job, on_cards=False)


def ask(layout: Layout, job: JobFile, *, on_cards: bool) -> tuple[list[Answer], list[Logs]]:
    """As `known`, from the models; one in memory at a time, and nothing beside it.

    Raises ScriptFailed where no row gives a prompt, torch.OutOfMemoryError.
    """
    from transformers import AutoTokenizer

    work = layout.stage(Stage.GGUF)
    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    questions = prompts.choose(layout, job, tokenizer)
    if not questions:
        raise ScriptFailed(Exit.BAD_DATA, "no row gives a prompt to test the model with")
    by_peft = (work / "merged").exists()
    model = load(work / ("merged" if by_peft else "base"), on_cards)
    ends = model.generation_config.eos_token_id
    stops = frozenset([tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])])
    if not by_peft:
        merge_into(model, read_deltas(final_adapter(layout, job)))
    answers = reference.answer_all(model, questions, stops)
    # From disk again: a copy of the adapted weights would take most of a second model's room on the card.
    del model
    gc.collect()
    torch.cuda.empty_cache()
    model = load(work / "base", on_cards)
    return answers, [reference.log_probabilities(model, answer.ids, answer.start) for answer in answers]


def load(folder: Path, on_cards: bool) -> Any:
    """float32 where it fits: the weights are then those that were converted, to the last bit. Else bfloat16.

    Raises torch.OutOfMemoryError where the cards do not hold the whole model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if on_cards:  # twice the stored 16 bits, and ample room to work
        free = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
        fits = free > 3.5 * stored
    else:
        fits = host.memory() > 2 * stored
    dtype, place = torch.float32 if fits else torch.bfloat16, "auto" if on_cards else None
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=place).eval()
    if any(weight.is_meta for weight in model.parameters()):  # left in main memory, where nothing is merged into it
        raise torch.OutOfMemoryError(f"{folder.name} has {stored} bytes and the cards do not hold all of it")
    print(f"answers: {folder.name} loaded, {dtype}", flush=True)
    return model


def save(file: Path, answers: list[Answer], base: list[Logs]) -> None:
    arrays: dict[str, Any] = {"texts": np.array([answer.prompt.text for answer in answers])}
    for i, (answer, theirs) in enumerate(zip(answers, base, strict=True)):
        arrays |= {f"prompt{i}": answer.prompt.ids, f"ids{i}": answer.ids, f"ours{i}": answer.logs, f"base{i}": theirs}
    part = file.with_name(f".part-{file.name}")
    np.savez(part, **arrays)
    part.replace(file)


def read(file: Path) -> tuple[list[Answer], list[Logs]]:
    with np.load(file, allow_pickle=False) as arrays:
        answers = [
            Answer(Prompt(str(text), arrays[f"prompt{i}"].tolist()), arrays[f"ids{i}"].tolist(), arrays[f"ours{i}"])
            for i, text in enumerate(arrays["texts"])
        ]
        return answers, [arrays[f"base{i}"] for i in range(len(answers))]


if __name__ == "__main__":
    sys.exit(script.run(Stage.GGUF, make))
