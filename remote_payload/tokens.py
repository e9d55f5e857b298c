"""Rows to token ids, once, for `prepare` that counts them and for the trainers that learn from them.

A chat row is rendered by the model's own template; nothing is trained that the template would not say at inference.
Labels are the ids the model learns; -100 marks what is only read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from remote_payload.contract import JobFile
from remote_payload.rows import Row
from remote_payload.templates import with_reasoning

IGNORED = -100  # what the loss skips, by torch's convention


@dataclass(frozen=True)
class Sample:
    """One SFT row. `labels` is as long as `ids`. `truncated`: the end is cut off, end-of-text and all."""

    ids: list[int]
    labels: list[int]
    truncated: bool

    @property
    def trained(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Pair:
    """One DPO row: the shared prompt and the two answers after it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    truncated: bool


def samples(tokenizer: Any, rows: list[Row], job: JobFile) -> list[Sample]:
    """What SFT trains on, in the order of the file. A row whose answer lies wholly beyond max_length is left out."""
    made = (sample(tokenizer, with_reasoning(row, job.reasoning), job.max_length) for row in rows)
    return [one for one in made if one.trained]


def pairs(tokenizer: Any, rows: list[Row], job: JobFile) -> list[Pair]:
    """What DPO trains on. A row is left out where the cut leaves nothing that tells chosen from rejected."""
    made = (pair(tokenizer, with_reasoning(row, job.reasoning), job.max_length) for row in rows)
    return [one for one in made if one.chosen != one.rejected]


def sample(tokenizer: Any, row: Row, max_length: int) -> Sample:
    """Raises ValueError when the template does not render a conversation as a continuation of its beginning."""
    if "text" in row:
        ids = _closed(tokenizer, tokenizer(row["text"])["input_ids"])
        return _cut(ids, list(ids), max_length)
    if isinstance(row.get("prompt"), str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = _closed(tokenizer, tokenizer(row["prompt"] + row["completion"])["input_ids"])
        start = _shared(prompt, ids)
        return _cut(ids, [IGNORED] * start + ids[start:], max_length)
    if "prompt" in row:
        opening, messages = len(row["prompt"]), row["prompt"] + row["completion"]
    else:
        opening, messages = 0, row["messages"]
    return _conversation(tokenizer, messages, opening, max_length)


def pair(tokenizer: Any, row: Row, max_length: int) -> Pair:
    if isinstance(row["prompt"], str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        chosen, rejected = (
            _closed(tokenizer, tokenizer(row["prompt"] + row[answer])["input_ids"]) for answer in ("chosen", "rejected")
        )
    else:
        prompt = _render(tokenizer, row["prompt"], add_generation_prompt=True)
        chosen, rejected = (
            _trimmed(tokenizer, _render(tokenizer, row["prompt"] + row[answer])) for answer in ("chosen", "rejected")
        )
    start = min(_shared(prompt, chosen), _shared(prompt, rejected))
    truncated = max(len(chosen), len(rejected)) > max_length
    return Pair(chosen[:start], chosen[start:max_length], rejected[start:max_length], truncated)


def _conversation(tokenizer: Any, messages: list[Row], opening: int, max_length: int) -> Sample:
    """Every assistant turn after the first `opening` messages is trained, its end-of-turn token included."""
    ids = _trimmed(tokenizer, _render(tokenizer, messages))
    labels = [IGNORED] * len(ids)
    for i, message in enumerate(messages):
        if i < opening or message["role"] != "assistant":
            continue
        start = _shared(_render(tokenizer, messages[:i], add_generation_prompt=True), ids)
        upto = _trimmed(tokenizer, _render(tokenizer, messages[: i + 1]))
        if ids[: len(upto)] != upto:
            raise ValueError("the chat template renders an earlier turn differently once more turns follow")
        labels[start : len(upto)] = ids[start : len(upto)]
    return _cut(ids, labels, max_length)


def _render(tokenizer: Any, messages: list[Row], add_generation_prompt: bool = False) -> list[int]:
    """The template writes its own special tokens, so none are added: that would double the beginning-of-text."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _closed(tokenizer: Any, ids: list[int]) -> list[int]:
    """`ids` ending in the end-of-text token."""
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _trimmed(tokenizer: Any, ids: list[int]) -> list[int]:
    """Without the blank text some templates write after the last end-of-turn token: generation ends before it."""
    end = len(ids)
    while end and not tokenizer.decode(ids[end - 1]).strip():
        end -= 1
    return ids[:end]


def _shared(prompt: list[int], whole: list[int]) -> int:
    """How many tokens `prompt` and `whole` begin with alike: tokens may merge where the answer begins."""
    for i, (a, b) in enumerate(zip(prompt, whole, strict=False)):
        if a != b:
            return i
    return min(len(prompt), len(whole))


def _cut(ids: list[int], labels: list[int], max_length: int) -> Sample:
    return Sample(ids[:max_length], labels[:max_length], len(ids) > max_length)
