"""The reference answers: what the merged model says before quantisation, position by position.

Greedy text is a poor witness (a sound Q8_0 leaves the original's text after a few tokens), so the reference is a
probability distribution at every position of one fixed text, the merged model's own greedy answer. A GGUF that is this
model has nearly the same distributions; the base model has others. Both are in run/out/reference.jsonl, from which the
workstation scores its copy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from remote_payload.contract import CONTRACT, write_whole
from remote_payload.prompts import Prompt

PROMPTS = 8  # at least, as far as there are
ENOUGH = 96  # positions: short answers call for more prompts
POSITIONS = 24  # tokens of greedy answer a prompt
TOP = 64  # tokens whose probability is written at each position; the rest is one sum
FLOOR = -100.0  # natural log of a probability too small to matter; JSON has no infinity

Logs = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """A prompt with its greedy answer: `ids` is both, the answer begins at `start`. `logs` is (answer, vocabulary)."""

    prompt: Prompt
    ids: list[int]
    logs: Logs

    @property
    def start(self) -> int:
        return len(self.prompt.ids)


def answer_all(model: Any, prompts: list[Prompt], stops: frozenset[int]) -> list[Answer]:
    """The model's answers to the first prompts, as many as PROMPTS and ENOUGH ask for."""
    answers: list[Answer] = []
    for prompt in prompts:
        if len(answers) >= PROMPTS and sum(len(a.logs) for a in answers) >= ENOUGH:
            break
        answers.append(_answer(model, prompt, stops))
    return answers


@torch.inference_mode()
def log_probabilities(model: Any, ids: list[int], start: int) -> Logs:
    """Row i: natural log of the model's distribution over ids[start + i], given all ids before it."""
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, start - 1 : -1]
    logs: Logs = logits.double().log_softmax(-1).cpu().numpy()
    return logs


@torch.inference_mode()
def _answer(model: Any, prompt: Prompt, stops: frozenset[int]) -> Answer:
    """The likeliest next tokens, the last one ending the turn, and the distribution each was taken from."""
    ids, rows = list(prompt.ids), []
    feed, cache = prompt.ids, None
    while len(rows) < POSITIONS and not (rows and ids[-1] in stops):
        step = model(input_ids=torch.tensor([feed], device=model.device), past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        rows.append(step.logits[0, -1].double().log_softmax(-1).cpu().numpy())
        feed = [int(rows[-1].argmax())]
        ids += feed
    return Answer(prompt, ids, np.stack(rows))


def divergence(ours: Logs, theirs: Logs) -> Logs:
    """KL(ours || theirs) in nats per position, over the TOP likeliest tokens of `ours` and the sum of the rest.

    The same number the workstation computes from the file, hence from no more than the file holds. NaN where `theirs`
    is not a number.
    """
    top = _top(ours)
    p, q = np.take_along_axis(ours, top, 1), np.take_along_axis(theirs, top, 1)
    p, q = np.column_stack((p, _rest(p))), np.column_stack((q, _rest(q)))
    result: Logs = (np.exp(p) * (p - q)).sum(axis=1)
    return result


def write(path: Path, header: dict[str, Any], answers: list[Answer], base: list[Logs], decode: Any) -> None:
    """Write reference.jsonl: `header` completed, then one line a prompt."""
    vocabulary = answers[0].logs.shape[1]
    lines = [{"v": CONTRACT, "top": TOP, "vocab": vocabulary, "prompts": len(answers)} | header]
    for answer, base_logs in zip(answers, base, strict=True):
        lines.append({
            "prompt_text": answer.prompt.text,
            "ids": answer.ids,
            "start": answer.start,
            "greedy_text": decode(answer.ids[answer.start :]),
            "positions": [
                _position(ours, "") | _position(theirs, "base_")
                for ours, theirs in zip(answer.logs, base_logs, strict=True)
            ],
        })  # fmt: skip
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def _position(logs: Logs, prefix: str) -> dict[str, Any]:
    row = logs[None, :]
    top = _top(row)
    kept = np.take_along_axis(row, top, 1)
    pairs = [[int(i), round(max(float(log), FLOOR), 6)] for i, log in zip(top[0], kept[0], strict=True)]
    return {f"{prefix}top": pairs, f"{prefix}tail": round(float(_rest(kept)[0]), 6)}


def _top(logs: Logs) -> NDArray[np.intp]:
    """Columns of the TOP likeliest tokens of each row, likeliest first."""
    return np.argsort(-logs, axis=1, kind="stable")[:, :TOP]


def _rest(kept: Logs) -> Logs:
    """Log of the probability that is in none of the kept columns."""
    left = 1.0 - np.exp(kept).sum(axis=1)
    return np.maximum(np.log(np.maximum(left, np.exp(FLOOR))), FLOOR)
