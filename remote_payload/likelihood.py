"""What a model makes of one held-out row: how surprising the answer is, and whether it would have chosen its word.

A row whose answer says one of the job's choices ("rose", "fell") is told right when, at the token where the expected
answer and one with another choice part, the model finds the expected one likelier, whichever other choice it is. The
text before that word is given: an answer that reasons first is asked whether it concludes rightly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remote_payload import tokens
from remote_payload.contract import JobFile
from remote_payload.rows import Row
from remote_payload.tokens import IGNORED, Sample


@dataclass(frozen=True)
class Parting:
    """Where two answers part: the token `expected` competes with `other` for index `at`."""

    at: int
    expected: int
    other: int


@dataclass(frozen=True)
class Question:
    """One row. `partings`: one for each other choice; none where the answer says no choice."""

    sample: Sample
    partings: tuple[Parting, ...] = ()


@dataclass(frozen=True)
class RowScore:
    """NLL in nats, summed over `tokens`; `right` None for a row without a choice."""

    nll: float
    tokens: int
    right: bool | None = None


def ask(tokenizer: Any, rows: Sequence[Row], job: JobFile) -> list[Question]:
    """The rows as ids, in order. One whose answer lies beyond max_length is left out."""
    found = []
    for row in rows:
        for sample in tokens.samples(tokenizer, [row], job):
            others = [other for row in variants(row, job.choices) for other in tokens.samples(tokenizer, [row], job)]
            partings = tuple(parting for other in others if (parting := part(sample, other)))
            found.append(Question(sample, partings))
    return found


def variants(row: Row, choices: Sequence[str]) -> Iterator[Row]:
    """The row with the last choice that its answer says replaced by each of the others."""
    said = list(re.finditer("|".join(rf"(?<!\w){re.escape(choice)}(?!\w)" for choice in choices), _answer(row)))
    if not choices or not said:
        return
    start, end = said[-1].span()
    for other in choices:
        if other != said[-1].group():
            yield _answering(row, _answer(row)[:start] + other + _answer(row)[end:])


def part(expected: Sample, other: Sample) -> Parting | None:
    """The first token in which they differ; None where that is cut off or not trained."""
    for at, (ours, theirs) in enumerate(zip(expected.ids, other.ids, strict=False)):
        if ours != theirs:
            return Parting(at, ours, theirs) if expected.labels[at] != IGNORED else None
    return None


@torch.inference_mode()
def answer(model: Any, question: Question) -> RowScore:
    """One forward of one row, so that no other row and no padding can touch it; logits only where they are read."""
    sample = question.sample
    trained = [at for at in range(1, len(sample.ids)) if sample.labels[at] != IGNORED]
    ids = torch.tensor([sample.ids], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=torch.tensor(trained) - 1).logits[0]
    logs = logits.float().log_softmax(-1)
    expected = torch.tensor([sample.ids[at] for at in trained], device=logs.device)
    nll = -logs.gather(1, expected[:, None]).double().sum()
    row = {at: index for index, at in enumerate(trained)}
    won = [bool(logs[row[p.at], p.expected] > logs[row[p.at], p.other]) for p in question.partings]
    return RowScore(float(nll), len(trained), all(won) if won else None)


def _answer(row: Row) -> str:
    """The text that is learned, of a conversation its last turn."""
    if "messages" in row:
        return str(row["messages"][-1]["content"])
    text = row["completion"] if "prompt" in row else row["text"]
    return text if isinstance(text, str) else str(text[-1]["content"])


def _answering(row: Row, text: str) -> Row:
    """`row` with another answer."""
    key = next(key for key in ("messages", "completion", "text") if key in row)
    if isinstance(row[key], str):
        return row | {key: text}
    return row | {key: [*row[key][:-1], row[key][-1] | {"content": text}]}
