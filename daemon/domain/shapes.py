"""What a data row may look like, and the one form it gets.

Accepted are the data set types of TRL, Alpaca's columns and ShareGPT's conversations. The box reads, for SFT,
{"messages"}, {"prompt", "completion"} or {"text"}; for DPO {"prompt", "chosen", "rejected"}, each a text or a list of
messages. Nothing is guessed about a row that fits no shape. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["sft", "dpo"]
Row = dict[str, Any]

ROLES = frozenset({"system", "user", "assistant"})
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRow(ValueError):
    """A row that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Shape:
    """A data set type. It is recognised by `columns`; `canonical` raises BadRow for a row that does not fit."""

    name: str
    columns: frozenset[str]
    canonical: Callable[[Row], Row]
    converts: bool = False


def recognised(row: Row, kind: Kind) -> Shape:
    """The shape of a file, from its first row. Raises BadRow naming what was found and what is accepted."""
    for shape in SHAPES[kind]:
        if shape.columns <= row.keys():
            return shape
    accepted = "; ".join(", ".join(sorted(shape.columns)) for shape in SHAPES[kind])
    raise BadRow(f"has the columns {', '.join(sorted(row)) or '(none)'}; for {kind} expected one of: {accepted}")


def characters(canonical: Row) -> int:
    """The length of all text in a row."""
    texts = (
        value if isinstance(value, str) else "".join(turn["content"] for turn in value) for value in canonical.values()
    )
    return sum(map(len, texts))


def _messages(row: Row) -> Row:
    turns = _with_system(row, _turns(row, "messages"))
    if turns[-1]["role"] != "assistant":
        raise BadRow("messages: the last message is not the assistant's")
    return {"messages": turns}


def _sharegpt(row: Row) -> Row:
    turns = []
    for i, turn in enumerate(_list(row, "conversations")):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in SPEAKERS:
            raise BadRow(f"conversations[{i}]: from is {speaker!r}, expected one of {', '.join(SPEAKERS)}")
        turns.append({"role": SPEAKERS[speaker], "content": _text(turn, "value", f"conversations[{i}].value")})
    return _messages({"messages": turns} | {key: row[key] for key in ("system",) if key in row})


def _alpaca(row: Row) -> Row:
    question = _text(row, "instruction")
    if isinstance(row.get("input"), str) and row["input"].strip():
        question = f"{question}\n\n{row['input']}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": _text(row, "output")}]
    return {"messages": _with_system(row, turns)}


def _prompt_completion(row: Row) -> Row:
    prompt, completion = _same_form(row, "prompt", "completion")
    return {"prompt": prompt, "completion": completion}


def _plain_text(row: Row) -> Row:
    return {"text": _text(row, "text")}


def _preference(row: Row) -> Row:
    prompt, chosen, rejected = _same_form(row, "prompt", "chosen", "rejected")
    return _differing(prompt, chosen, rejected)


def _implicit_prompt(row: Row) -> Row:
    """Two whole conversations: what they have in common is the prompt."""
    if isinstance(row.get("chosen"), str):
        raise BadRow("prompt is missing (only conversations may leave it inside chosen and rejected)")
    chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if common == len(chosen) == len(rejected):
        raise BadRow("chosen and rejected are equal")
    if common == 0 or common in (len(chosen), len(rejected)):
        raise BadRow("chosen and rejected have no common prompt before their answers")
    return _differing(chosen[:common], chosen[common:], rejected[common:])


def _differing(prompt: Any, chosen: Any, rejected: Any) -> Row:
    if chosen == rejected:
        raise BadRow("chosen and rejected are equal")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _same_form(row: Row, *keys: str) -> list[Any]:
    """The columns, all text or all lists of messages, with the `system` column before the prompt."""
    if missing := [key for key in keys if key not in row]:
        raise BadRow(f"{missing[0]} is missing")
    if len({isinstance(row[key], list) for key in keys}) > 1:
        raise BadRow(f"{', '.join(keys)} must all be text or all be lists of messages")
    as_messages = isinstance(row[keys[0]], list)
    values: list[Any] = [_turns(row, key) if as_messages else _text(row, key) for key in keys]
    if as_messages:
        values[0] = _with_system(row, values[0])
    elif row.get("system"):
        raise BadRow("a system column needs conversations; write prompt and answers as lists of messages")
    return values


def _with_system(row: Row, turns: list[Row]) -> list[Row]:
    if not row.get("system"):
        return turns
    if turns[0]["role"] == "system":
        raise BadRow("system is given twice, as a column and as the first message")
    return [{"role": "system", "content": _text(row, "system")}, *turns]


def _turns(row: Row, key: str) -> list[Row]:
    if row.get("tools"):
        raise BadRow("tools cannot be trained with yet")
    turns = []
    for i, turn in enumerate(_list(row, key)):
        role = turn.get("role") if isinstance(turn, dict) else None
        if role not in ROLES:
            raise BadRow(f"{key}[{i}]: role is {role!r}, expected one of {', '.join(sorted(ROLES))}")
        if turn.get("tool_calls"):
            raise BadRow(f"{key}[{i}]: tool calls cannot be trained yet")
        turns.append({"role": role, "content": _text(turn, "content", f"{key}[{i}].content")})
    return turns


def _list(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise BadRow(f"{key} is not a list of messages")
    return value


def _text(row: Row, key: str, name: str = "") -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise BadRow(f"{name or key} is not text")
    if not value.strip():
        raise BadRow(f"{name or key} is empty")
    if LONE_SURROGATE.search(value):
        raise BadRow(f"{name or key} holds half a surrogate pair, which no text encoding can carry")
    return value


SHAPES: dict[Kind, tuple[Shape, ...]] = {
    "sft": (
        Shape("messages", frozenset({"messages"}), _messages),
        Shape("ShareGPT conversations", frozenset({"conversations"}), _sharegpt, converts=True),
        Shape("prompt and completion", frozenset({"prompt", "completion"}), _prompt_completion),
        Shape("Alpaca instructions", frozenset({"instruction", "output"}), _alpaca, converts=True),
        Shape("plain text", frozenset({"text"}), _plain_text),
    ),
    "dpo": (
        Shape("preference pairs", frozenset({"prompt", "chosen", "rejected"}), _preference),
        Shape("preference conversations", frozenset({"chosen", "rejected"}), _implicit_prompt, converts=True),
    ),
}
