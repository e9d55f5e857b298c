"""The chat template while training, and the one that is delivered.

Some shipped templates delete the reasoning of an answer (DeepSeek R1, V3), others render an earlier turn otherwise
once more turns follow (Qwen3). Both suit a conversation and ruin training. `for_training` finds a variant without
that; it lives in memory only. What is delivered is the base model's own template, byte for byte, except under
`reasoning: none`, where a template that begins every answer with <think> would contradict what was learned.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from remote_payload.contract import write_whole
from remote_payload.reasoning import CLOSE, OPEN, without_opening

# Statements known to delete reasoning from a turn, as they stand in shipped templates.
DELETING = [
    re.compile(
        r"\{%-?\s*if\s+'</think>'\s+in\s+content\s*-?%\}"
        r"\{%-?\s*set\s+content\s*=\s*content\.split\('</think>'\)\[-1\]\s*-?%\}"
        r"\{%-?\s*endif\s*-?%\}"
    ),
]
TRAINING = "_training.jinja"  # how TRL names its variant of a template that it knows

QUESTION = {"role": "user", "content": "question"}
MARKS = ("first-reasoning", "second-reasoning")
REASONED = [{"role": "assistant", "content": f"{OPEN}\n{mark}\n{CLOSE}\n\nanswer"} for mark in MARKS]


def for_training(tokenizer: Any) -> str | None:
    """The template to train with; None when the tokenizer has none.

    The first candidate that keeps all reasoning and renders a conversation as the continuation of its beginning; else
    the first that keeps the last turn's; else the shipped one: `tokens` refuses the rows of which it loses anything.
    """
    shipped: str | None = tokenizer.chat_template
    if shipped is None:
        return None
    fit = [variant for variant in _candidates(shipped) if _keeps(tokenizer, variant, turns=1)]
    best = [variant for variant in fit if _keeps(tokenizer, variant, turns=2)]
    return (best or fit or [shipped])[0]


def may_be_replaced(tokenizer: Any) -> bool:
    """Whether the machine, which has TRL, may train with a variant of this template that is not known here."""
    return importlib.util.find_spec("trl") is None and not _keeps(tokenizer, tokenizer.chat_template, turns=2)


def opens_reasoning(tokenizer: Any, template: str | None = None) -> bool:
    """Whether the generation prompt already begins the reasoning, so that an answer without any contradicts it."""
    if tokenizer.chat_template is None:
        return False
    return _rendered(tokenizer, template, [QUESTION], add_generation_prompt=True).rstrip().endswith(OPEN)


def deliver(folder: Path, reasoning: str) -> None:
    """In a copy of the base model's files, the template as it is to come home: another one only under `none`."""
    if reasoning != "none":
        return
    own, configuration = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if own.exists():
        write_whole(own, without_opening(own.read_text(encoding="utf-8")))
    settings = json.loads(configuration.read_text(encoding="utf-8")) if configuration.exists() else {}
    if isinstance(settings.get("chat_template"), str):
        settings["chat_template"] = without_opening(settings["chat_template"])
        write_whole(configuration, json.dumps(settings, ensure_ascii=False, indent=2))


def _candidates(shipped: str) -> Iterator[str]:
    yield shipped
    kept = shipped
    for statement in DELETING:
        kept = statement.sub("", kept)
    yield kept
    if importlib.util.find_spec("trl") is None:
        return  # a workstation that only counts tokens
    folder = importlib.resources.files("trl") / "chat_templates"
    for variant in sorted(folder.iterdir(), key=lambda file: file.name):
        if variant.name.endswith(TRAINING):
            known = folder / variant.name.replace(TRAINING, ".jinja")
            if known.read_text(encoding="utf-8").rstrip() == shipped.rstrip():
                yield variant.read_text(encoding="utf-8")


def _keeps(tokenizer: Any, template: str, turns: int) -> bool:
    """Whether a conversation of `turns` answers keeps the reasoning of each and begins with the shorter one."""
    conversation = [message for answer in REASONED[:turns] for message in (QUESTION, answer)]
    try:
        whole = _rendered(tokenizer, template, conversation)
        earlier = _rendered(tokenizer, template, conversation[:-2]) if turns > 1 else ""
    except TemplateError:  # a template that cannot render a question and its answer keeps nothing
        return False
    return whole.startswith(earlier.rstrip()) and all(mark in whole for mark in MARKS[:turns])


def _rendered(tokenizer: Any, template: str | None, messages: list[dict[str, str]], **options: bool) -> str:
    text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    return text
