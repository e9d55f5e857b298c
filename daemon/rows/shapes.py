"""What a data row may look like, and the one form it gets.

Accepted are the data set types of TRL, Alpaca's columns and ShareGPT's conversations. The box reads, for SFT,
{"messages"}, {"prompt", "completion"} or {"text"}; for DPO {"prompt", "chosen", "rejected"}, each a text or a list of
messages; a row of messages may also carry {"tools"}. Nothing is guessed about a row that fits no shape, and nothing
that would change what is learned is dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from daemon.rows.toolcalls import calls, tools

Kind = Literal["sft", "dpo", "eval"]
Row = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {  # ShareGPT's names
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
APART = ("reasoning_content", "reasoning", "thinking")  # where some tools keep the reasoning of a turn


class BadRow(ValueError):
    """A row that cannot be trained on; the message says why."""


@dataclass(frozen=True)
class Shape:
    """A data set type, recognised by `columns`; those of `optional` are used where they are there, others left out.

    `becomes` are the columns of the canonical row. `canonical` raises BadRow for a row that does not fit.
    """

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    becomes: tuple[str, ...]
    canonical: Callable[[Row], Row]

    @property
    def converts(self) -> bool:
        return self.columns != self.becomes

    def unused(self, row: Row) -> set[str]:
        return row.keys() - {*self.columns, *self.optional}


def recognised(row: Row, kind: Kind) -> Shape:
    """The shape of a file, from its first row. Raises BadRow naming what was found and what is accepted."""
    for shape in SHAPES[kind]:
        if row.keys() >= set(shape.columns):
            return shape
    accepted = "; ".join(", ".join(shape.columns) for shape in SHAPES[kind])
    raise BadRow(f"has the columns {', '.join(sorted(row)) or '(none)'}; for {kind} expected one of: {accepted}")


def canonical(row: Row, shape: Shape) -> Row:
    """`row` in the form that the box reads. Raises BadRow."""
    if missing := [column for column in shape.columns if column not in row]:
        raise BadRow(f"{missing[0]} is missing (the file is read as {shape.name}, like its first row)")
    if media := [column for column in MEDIA if row.get(column)]:
        raise BadRow(f"{media[0]}: only text can be trained on")
    made = shape.canonical(row)
    if row.get("tools"):
        if not any(isinstance(value, list) for value in made.values()):
            raise BadRow("a tools column needs conversations; write prompt and answers as lists of messages")
        made["tools"] = _or_bad(tools, row["tools"])
    return made


def _messages(row: Row) -> Row:
    return {"messages": _answered("messages", _with_system(row, _turns(row, "messages")))}


def _sharegpt(row: Row) -> Row:
    return _messages({"messages": _spoken(row, "conversations"), "system": row.get("system")})


def _alpaca(row: Row) -> Row:
    answer = {"role": "assistant", "content": _text(row, "output")}
    return {"messages": [*_instruction(row), answer]}


def _prompt_completion(row: Row) -> Row:
    if isinstance(row.get("label"), bool):
        raise BadRow("label tells good answers from bad ones, and SFT would train both alike; keep the good ones only")
    prompt, completion = _same_form(row, "prompt", "completion")
    return {"prompt": prompt, "completion": _answered("completion", completion)}


def _plain_text(row: Row) -> Row:
    return {"text": _text(row, "text")}


def _preference(row: Row) -> Row:
    if isinstance(row["prompt"], str) and isinstance(row["chosen"], list) and isinstance(row["rejected"], list):
        found = _implicit_prompt(row)  # whole conversations; the prompt is there once more, as text
        if found["prompt"][-1]["content"] != row["prompt"]:
            raise BadRow("prompt is text, and not the last message that chosen and rejected have in common")
        return found
    prompt, chosen, rejected = _same_form(row, "prompt", "chosen", "rejected")
    return _differing(prompt, chosen, rejected)


def _alpaca_pairs(row: Row) -> Row:
    answers = [[{"role": "assistant", "content": _text(row, key)}] for key in ("chosen", "rejected")]
    return _differing(_instruction(row), *answers)


def _sharegpt_pairs(row: Row) -> Row:
    prompt = _with_system(row, _turns({"conversations": _spoken(row, "conversations")}, "conversations"))
    chosen, rejected = (
        _turns({key: _spoken({key: [row[key]] if isinstance(row[key], dict) else row[key]}, key)}, key)
        for key in ("chosen", "rejected")
    )
    return _differing(prompt, chosen, rejected)


def _implicit_prompt(row: Row) -> Row:
    """Two whole conversations, or texts: what they have in common is the prompt."""
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        return _implicit_text(row)
    chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
    common = _shared(chosen, rejected)
    if common == len(chosen) == len(rejected):
        raise BadRow("chosen and rejected are equal")
    if common == 0 or common in (len(chosen), len(rejected)):
        raise BadRow("chosen and rejected have no common prompt before their answers")
    return _differing(_with_system(row, chosen[:common]), chosen[common:], rejected[common:])


def _implicit_text(row: Row) -> Row:
    """Divided at the last blank that they share, so in no word. Where exactly does not matter to what is learned: what
    both answers begin with weighs for the one as much as against the other."""
    chosen, rejected = _texts(row, "chosen", "rejected")
    shared = chosen[: _shared(chosen, rejected)]
    start = max((i + 1 for i, character in enumerate(shared) if character.isspace()), default=0)
    parts = shared[:start], chosen[start:], rejected[start:]
    if chosen != rejected and not all(part.strip() for part in parts):
        raise BadRow("chosen and rejected do not begin with a common prompt, which each answers; write it as a column")
    return _differing(*parts)


def _differing(prompt: Any, chosen: Any, rejected: Any) -> Row:
    if chosen == rejected:
        raise BadRow("chosen and rejected are equal")
    return {"prompt": prompt, "chosen": _answered("chosen", chosen), "rejected": _answered("rejected", rejected)}


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many turns, or characters, the two begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _answered(key: str, answer: Any) -> Any:
    """`answer`, text or turns. Turns that end otherwise would be learned without an end, or not at all."""
    if isinstance(answer, list) and answer[-1]["role"] != "assistant":
        raise BadRow(f"{key}: the last message is not the assistant's")
    return answer


def _same_form(row: Row, *keys: str) -> list[Any]:
    """The columns, all text or all lists of messages, with the `system` column before the prompt."""
    if len({isinstance(row[key], list) for key in keys}) > 1:
        raise BadRow(f"{', '.join(keys)} must all be text or all be lists of messages")
    if not isinstance(row[keys[0]], list):
        return _texts(row, *keys)
    prompt, *answers = (_turns(row, key) for key in keys)
    return [_with_system(row, prompt), *answers]


def _texts(row: Row, *keys: str) -> list[str]:
    if row.get("system"):
        raise BadRow("a system column needs conversations; write prompt and answers as lists of messages")
    return [_text(row, key) for key in keys]


def _instruction(row: Row) -> list[Row]:
    """Alpaca's question with what came before it."""
    question = _text(row, "instruction")
    if isinstance(row.get("input"), str) and row["input"].strip():
        question = f"{question}\n\n{row['input']}"
    turns: list[Row] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("history is not a list of pairs of question and answer")
    for i, exchange in enumerate(history):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRow(f"history[{i}] is not a pair of question and answer")
        asked, answered = ({"content": text} for text in exchange)
        turns.append({"role": "user", "content": _text(asked, "content", f"history[{i}][0]")})
        turns.append({"role": "assistant", "content": _text(answered, "content", f"history[{i}][1]")})
    return _with_system(row, [*turns, {"role": "user", "content": question}])


def _spoken(row: Row, key: str) -> list[Row]:
    """ShareGPT's turns as messages, not yet checked as such; some files already use role and content."""
    turns = []
    for i, turn in enumerate(_list(row, key)):
        if isinstance(turn, dict) and "role" in turn:
            turns.append(turn)
            continue
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise BadRow(f"{key}[{i}]: from is {speaker!r}, expected one of {', '.join(SPEAKERS)}")
        if speaker == "function_call":
            turns.append({"role": "assistant", "tool_calls": turn.get("value")})
        else:
            turns.append({"role": SPEAKERS[speaker], "content": turn.get("value")})
    return turns


def _with_system(row: Row, turns: list[Row]) -> list[Row]:
    if not row.get("system"):
        return turns
    if turns[0]["role"] == "system":
        raise BadRow("system is given twice, as a column and as the first message")
    return [{"role": "system", "content": _text(row, "system")}, *turns]


def _turns(row: Row, key: str) -> list[Row]:
    return [_turn(turn, f"{key}[{i}]") for i, turn in enumerate(_list(row, key))]


def _turn(turn: Any, name: str) -> Row:
    role = turn.get("role") if isinstance(turn, dict) else None
    if role not in ROLES:
        raise BadRow(f"{name}: role is {role!r}, expected one of {', '.join(ROLES)}")
    if lost := [key for key in APART if turn.get(key)]:
        raise BadRow(f"{name}: {lost[0]} would be lost; write it into content, between <think> and </think>")
    made: Row = {"role": role}
    if turn.get("tool_calls"):
        if role != "assistant":
            raise BadRow(f"{name}: tool_calls belong to the assistant")
        made["content"] = _text(turn, "content", f"{name}.content") if turn.get("content") else ""
        made["tool_calls"] = _or_bad(calls, turn["tool_calls"], name)
    elif role == "tool" and turn.get("content") == "":
        made["content"] = ""  # a tool may have nothing to say
    else:
        made["content"] = _text(turn, "content", f"{name}.content")
    return made | {key: turn[key] for key in ("name", "tool_call_id") if role == "tool" and turn.get(key)}


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


def _or_bad(read: Callable[..., list[Any]], *values: Any) -> list[Any]:
    try:
        return read(*values)
    except ValueError as error:
        raise BadRow(str(error)) from error


MESSAGES, PAIR, COMPLETION = ("messages",), ("prompt", "chosen", "rejected"), ("prompt", "completion")

# The first that fits is taken, so one whose columns contain another's stands before it.
ANSWERS = (
    Shape("messages", MESSAGES, ("system", "tools"), MESSAGES, _messages),
    Shape("ShareGPT", ("conversations",), ("system", "tools"), MESSAGES, _sharegpt),
    Shape("prompt and completion", COMPLETION, ("system", "tools"), COMPLETION, _prompt_completion),
    Shape("Alpaca", ("instruction", "output"), ("input", "history", "system", "tools"), MESSAGES, _alpaca),
    Shape("plain text", ("text",), (), ("text",), _plain_text),
)
PAIRS = (
    Shape("preference pairs", PAIR, ("system", "tools"), PAIR, _preference),
    Shape("ShareGPT pairs", ("conversations", *PAIR[1:]), ("system", "tools"), PAIR, _sharegpt_pairs),
    Shape("Alpaca pairs", ("instruction", *PAIR[1:]), ("input", "history", "system", "tools"), PAIR, _alpaca_pairs),
    Shape("prompt inside", PAIR[1:], ("system", "tools"), PAIR, _implicit_prompt),
)
SHAPES: dict[Kind, tuple[Shape, ...]] = {"sft": ANSWERS, "dpo": PAIRS, "eval": ANSWERS}
