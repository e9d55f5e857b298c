"""What becomes of <think> reasoning: decided from what the answers hold and what the template does, never guessed.

keep    answers are trained as they are written
empty   an answer without reasoning is trained after an empty block: the model learns to think nothing and answer
none    answers hold no reasoning, and the delivered template begins none either

Standard library only: the workstation asks what template must come home.
"""

from __future__ import annotations

import re
from typing import Any

from remote_payload.rows import Row

OPEN, CLOSE = "<think>", "</think>"
EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"
FEW = 0.05  # share of answers with reasoning below which `keep` contradicts a template that begins every answer with it
ANSWERS = ("completion", "chosen", "rejected")
OPENING = re.compile(re.escape(OPEN) + r"(\\n)*(?=['\"])")  # as a template writes it, at the end of a text

CHOICES = (
    "say which is meant. "
    f"reasoning: keep trains the answers as they are written; "
    f"reasoning: empty puts an empty {OPEN} block before those without; "
    f"reasoning: none trains plain answers and delivers a template that begins no {OPEN}"
)


class Unclear(ValueError):
    """The data contradicts the choice, or there is none and the data does not make it."""


def settled(asked: str, opens: bool, answers: list[str]) -> str:
    """keep, empty or none, for the answers that are trained. Raises Unclear, which tells the counts and the choices.

    `opens`: the chat template begins every answer with <think>.
    """
    reasoned, all_ = sum(map(has, answers)), len(answers)
    counts = f"{reasoned} of {all_} answers hold {OPEN} reasoning"
    if opens:
        counts += f", and the chat template begins every answer with {OPEN}"
    if broken := sum((OPEN in answer) != (CLOSE in answer) for answer in answers):
        raise Unclear(f"{broken} of {all_} answers hold only one of {OPEN} and {CLOSE}; write both or none")
    if asked == "auto":
        if reasoned == all_ or (reasoned == 0 and not opens):
            return "keep"
        raise Unclear(f"{counts}: {CHOICES}")
    if asked == "keep" and opens and reasoned < FEW * all_:
        raise Unclear(f"reasoning: keep, but {counts}: {CHOICES}")
    if asked == "none" and reasoned:
        raise Unclear(f"reasoning: none, but {counts}: {CHOICES}")
    return asked


def answers(row: Row) -> list[str]:
    """The text of every answer of a chat row that is trained; nothing for plain text, which no template touches."""
    if "messages" in row:
        return [_text(turn) for turn in row["messages"] if turn["role"] == "assistant"]
    return [_text(turn) for key in ANSWERS if isinstance(row.get(key), list) for turn in row[key]]


def has(answer: str) -> bool:
    return CLOSE in answer


def with_reasoning(row: Row, reasoning: str) -> Row:
    """`row` with an empty block before every assistant turn that has none, if `reasoning` is "empty"."""
    if reasoning != "empty":
        return row
    turned = ("messages", "prompt", *ANSWERS)
    return row | {key: _opened(row[key]) for key in turned if isinstance(row.get(key), list)}


def without_opening(template: str) -> str:
    """`template` with the <think> taken out of what it writes for the generation prompt, its last part."""
    turns, mark, prompt = template.rpartition("add_generation_prompt")
    return turns + mark + OPENING.sub("", prompt)


def _opened(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        message | {"content": EMPTY + _text(message)}
        if message["role"] == "assistant" and not has(_text(message))
        else message
        for message in messages
    ]


def _text(message: dict[str, Any]) -> str:
    """Its content; a turn that only calls tools may have none."""
    return message.get("content") or ""
