"""The questions whose answers prove that the model arrived: a few prompts from the person's own data.

From the evaluation rows if there are any, else from the training rows. Short ones, because the workstation may read
them at a few tokens a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remote_payload import reasoning, rows, templates
from remote_payload.contract import JobFile
from remote_payload.layout import Layout
from remote_payload.rows import Row

CANDIDATES = 64  # rows looked at, evenly spread over the file
MOST = 24  # prompts returned
SHORT = 192  # tokens
LONGEST = 960  # tokens; with its answer it fits the 1024 that the workstation's memory for this is measured by
OPENING = 32  # tokens of a row that is plain text without a prompt


@dataclass(frozen=True)
class Prompt:
    """The rendered text, and its ids, special tokens included and nothing added to them."""

    text: str
    ids: list[int]


def choose(layout: Layout, job: JobFile, tokenizer: Any) -> list[Prompt]:
    """Up to MOST different prompts in the order of the file, long ones only where there are no short ones.

    Of one that is too long for the workstation the end is asked, up to where the answer begins.
    """
    found = _rows(layout, job)
    spread = found[:: max(1, len(found) // CANDIDATES)][:CANDIDATES]
    rendered = [_prompt(tokenizer, row, job.reasoning) for row in spread]
    prompts = list({prompt.text: prompt for prompt in rendered if prompt.ids}.values())
    short = [prompt for prompt in prompts if len(prompt.ids) <= SHORT]
    return short[:MOST] or [_cut(tokenizer, prompt) for prompt in sorted(prompts, key=lambda p: len(p.ids))[:MOST]]


def _cut(tokenizer: Any, prompt: Prompt) -> Prompt:
    """By its text, not its ids: those must be what a tokenizer makes of the text, which begins as every text does."""
    beginning = _beginning(tokenizer)
    while len(prompt.ids) > LONGEST:
        text = beginning + prompt.text[len(prompt.text) // 2 :]
        prompt = Prompt(text, encode(tokenizer, text))
    return prompt


def _rows(layout: Layout, job: JobFile) -> list[Row]:
    for source in (job.eval_data, job.sft_data):
        if source is not None:
            return rows.read_sft(layout, source).rows
    return rows.read_dpo(layout, job.dpo_data).rows if job.dpo_data else []


def _prompt(tokenizer: Any, row: Row, settled: str) -> Prompt:
    opening = row["messages"][:-1] if "messages" in row else row.get("prompt")
    if isinstance(opening, list):
        text = tokenizer.apply_chat_template(
            opening, tools=row.get("tools"), tokenize=False, add_generation_prompt=True
        )
        if settled == "empty" and not templates.opens_reasoning(tokenizer):
            text += reasoning.EMPTY  # as every trained answer began
    else:
        text = _beginning(tokenizer) + (row["text"] if opening is None else opening)
    ids = encode(tokenizer, text)
    if opening is None:
        ids = ids[:OPENING]
        text = tokenizer.decode(ids)
    return Prompt(text, ids)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of `text`: special tokens that are written in it are recognised, none are added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _beginning(tokenizer: Any) -> str:
    """What the tokenizer puts before plain text of its own accord."""
    added = tokenizer("")["input_ids"]
    return tokenizer.bos_token if added[:1] == [tokenizer.bos_token_id] and tokenizer.bos_token else ""
