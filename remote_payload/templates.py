"""The chat template while training: some shipped templates delete the reasoning they are given.

DeepSeek's R1 distills render an assistant turn without everything up to </think>, which suits a conversation and
ruins training: the model would learn the answer alone. `for_training` gives the variant that keeps it. It lives in
memory only; what is exported is the base model's own file, byte for byte.
"""

from __future__ import annotations

import re
from typing import Any

from remote_payload.contract import Exit
from remote_payload.rows import Row
from remote_payload.script import ScriptFailed

OPEN, CLOSE = "<think>", "</think>"
EMPTY = f"{OPEN}\n\n{CLOSE}\n\n"
MARK = "mark-of-the-reasoning"
FEW = 0.05  # share of answers with reasoning below which a template that opens <think> contradicts the data

# Statements known to delete reasoning from a turn, as they stand in shipped templates.
DELETING = [
    re.compile(
        r"\{%-?\s*if\s+'</think>'\s+in\s+content\s*-?%\}"
        r"\{%-?\s*set\s+content\s*=\s*content\.split\('</think>'\)\[-1\]\s*-?%\}"
        r"\{%-?\s*endif\s*-?%\}"
    ),
]


def for_training(tokenizer: Any) -> str | None:
    """The template to train with; None when the tokenizer has none. Raises ScriptFailed (20) when reasoning would be
    deleted by a statement not known here."""
    template = tokenizer.chat_template
    if template is None or not deletes_reasoning(tokenizer, template):
        return template
    kept = template
    for statement in DELETING:
        kept = statement.sub("", kept)
    if deletes_reasoning(tokenizer, kept):
        raise ScriptFailed(
            Exit.BAD_DATA,
            "the model's chat template deletes <think> reasoning in a way no training variant is known for",
        )
    return kept


def deletes_reasoning(tokenizer: Any, template: str) -> bool:
    turns = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": f"{OPEN}\n{MARK}\n{CLOSE}\n\nanswer"},
    ]
    return MARK not in tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)


def opens_reasoning(tokenizer: Any) -> bool:
    """Whether the generation prompt already begins the reasoning, so that an answer without any contradicts it."""
    if tokenizer.chat_template is None:
        return False
    turns = [{"role": "user", "content": "question"}]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text.rstrip().endswith(OPEN)


def objection(tokenizer: Any, answers: list[str], reasoning: str) -> str | None:
    """Why these answers cannot be trained under `reasoning` with this template; None when they can."""
    if reasoning == "none":
        return "reasoning: none needs an exported template without <think>, which this version does not write"
    if reasoning == "keep" and answers and opens_reasoning(tokenizer):
        share = sum(OPEN in answer for answer in answers) / len(answers)
        if share < FEW:
            return (
                f"only {share:.0%} of the answers contain {OPEN}, yet the template begins every answer with it; "
                "choose reasoning: empty to train answers after an empty block"
            )
    return None


def with_reasoning(row: Row, reasoning: str) -> Row:
    """`row` with an empty reasoning block before every assistant turn that has none, if `reasoning` is "empty"."""
    if reasoning != "empty":
        return row
    return {key: _opened(value) if isinstance(value, list) else value for key, value in row.items()}


def answers(row: Row) -> list[str]:
    """The text of every assistant turn of a chat row; nothing for plain text, which no template touches."""
    turns = [message for value in row.values() if isinstance(value, list) for message in value]
    return [message["content"] for message in turns if message["role"] == "assistant"]


def _opened(messages: list[Row]) -> list[Row]:
    return [
        message | {"content": EMPTY + message["content"]}
        if message["role"] == "assistant" and OPEN not in message["content"]
        else message
        for message in messages
    ]
