"""The shapes of data rows: each accepted one with what it becomes, each refusal with its sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.rows.shapes import SHAPES, BadRow, canonical, recognised

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}
RUDE = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind"}
TOOL = {"type": "function", "function": {"name": "rate", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "rate", "arguments": {"day": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
ANSWERED = {"role": "tool", "content": "1.08"}

ACCEPTED = [
    ("sft", "messages", {"messages": [USER, BOT]}, {"messages": [USER, BOT]}),
    ("sft", "messages", {"messages": [USER, BOT], "system": "Be kind"}, {"messages": [SYSTEM, USER, BOT]}),
    (
        "sft",
        "messages",
        {"messages": [USER, CALLING, ANSWERED, BOT], "tools": [TOOL]},
        {"messages": [USER, CALLING, ANSWERED, BOT], "tools": [TOOL]},
    ),
    (
        "sft",
        "messages",  # tools, calls and arguments as JSON text; the function described without its wrapping
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [{"function": {"name": "rate", "arguments": '{"day": 1}'}}]},
                {"role": "tool", "content": "1.08", "tool_call_id": "c1", "weight": 1},
                BOT,
            ],
            "tools": '[{"name": "rate", "parameters": {"type": "object"}}]',
        },
        {"messages": [USER, CALLING, ANSWERED | {"tool_call_id": "c1"}, BOT], "tools": [TOOL]},
    ),
    ("sft", "prompt and completion", {"prompt": "1+1=", "completion": "2"}, {"prompt": "1+1=", "completion": "2"}),
    ("sft", "prompt and completion", {"prompt": [USER], "completion": [BOT]}, {"prompt": [USER], "completion": [BOT]}),
    ("sft", "plain text", {"text": "Once upon a time"}, {"text": "Once upon a time"}),
    ("sft", "Alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, {"messages": [USER, BOT]}),
    (
        "sft",
        "Alpaca",
        {"instruction": "Add", "input": "1, 2", "output": "Hello", "system": "Be kind", "history": [["Hi", "Hello"]]},
        {"messages": [SYSTEM, USER, BOT, {"role": "user", "content": "Add\n\n1, 2"}, BOT]},
    ),
    (
        "sft",
        "ShareGPT",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [USER, BOT]},
    ),
    (
        "sft",
        "ShareGPT",
        {
            "conversations": [
                USER,
                {"from": "function_call", "value": '{"name": "rate", "arguments": {"day": 1}}'},
                {"from": "observation", "value": "1.08"},
                {"from": "gpt", "value": "Hello"},
            ]
        },
        {"messages": [USER, CALLING, ANSWERED, BOT]},
    ),
    (
        "dpo",
        "preference pairs",
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
    ),
    (
        "dpo",
        "preference pairs",
        {"prompt": [USER], "chosen": [BOT], "rejected": [RUDE], "system": "Be kind", "tools": [TOOL]},
        {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [RUDE], "tools": [TOOL]},
    ),
    (
        "dpo",
        "preference pairs",  # the prompt once more as text
        {"prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, RUDE]},
        {"prompt": [USER], "chosen": [BOT], "rejected": [RUDE]},
    ),
    (
        "dpo",
        "prompt inside",
        {"chosen": [SYSTEM, USER, BOT], "rejected": [SYSTEM, USER, RUDE]},
        {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [RUDE]},
    ),
    (
        "dpo",
        "prompt inside",  # both go on in one word with "M"
        {"chosen": "Who? Mark rose.", "rejected": "Who? Mary fell."},
        {"prompt": "Who? ", "chosen": "Mark rose.", "rejected": "Mary fell."},
    ),
    (
        "dpo",
        "prompt inside",  # the one is the beginning of the other
        {"chosen": "Who?\nMark.", "rejected": "Who?\nMark. Or Mary."},
        {"prompt": "Who?\n", "chosen": "Mark.", "rejected": "Mark. Or Mary."},
    ),
    (
        "dpo",
        "ShareGPT pairs",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "What?"},
        },
        {"prompt": [USER], "chosen": [BOT], "rejected": [RUDE]},
    ),
    (
        "dpo",
        "Alpaca pairs",
        {"instruction": "Hi", "chosen": "Hello", "rejected": "What?"},
        {"prompt": [USER], "chosen": [BOT], "rejected": [RUDE]},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "row", "expected"), ACCEPTED)
def test_each_shape_is_recognised_and_converted(kind, name, row, expected):
    """What comes in as any of the known shapes becomes the form that the box reads, and stays what it then is."""
    shape = recognised(row, kind)

    made = canonical(row, shape)

    assert (shape.name, made) == (name, expected)
    assert canonical(made, recognised(made, kind)) == made
    assert set(shape.becomes) == made.keys() - {"tools"}


def test_every_shape_is_shown_above():
    """A shape that is added to the table gets its rows here."""
    shown = {(kind, name) for kind, name, *_ in ACCEPTED}

    assert shown == {(kind, shape.name) for kind in ("sft", "dpo") for shape in SHAPES[kind]}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("sft", {"messages": [USER]}, "messages: the last message is not the assistant's"),
        ("sft", {"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[1].content is empty"),
        ("sft", {"messages": [{"role": "critic", "content": "x"}, BOT]}, "messages[0]: role is 'critic', expected one"),
        ("sft", {"messages": "Hi"}, "messages is not a list of messages"),
        ("sft", {"messages": [SYSTEM, USER, BOT], "system": "x"}, "system is given twice"),
        ("sft", {"messages": [USER, BOT | {"content": "\ud800"}]}, "messages[1].content holds half a surrogate"),
        ("sft", {"messages": [USER, BOT | {"thinking": "hm"}]}, "messages[1]: thinking would be lost"),
        ("sft", {"messages": [USER, BOT], "images": ["a.png"]}, "images: only text can be trained on"),
        ("sft", {"messages": [USER | {"tool_calls": [CALL]}, BOT]}, "messages[0]: tool_calls belong to the assistant"),
        ("sft", {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0] names no"),
        (
            "sft",
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}]},
            "messages[1].tool_calls[0].arguments is not JSON",
        ),
        ("sft", {"messages": [USER, BOT], "tools": "[1]"}, "tools[0] describes no function"),
        ("sft", {"prompt": "a", "completion": "b", "tools": [TOOL]}, "a tools column needs conversations"),
        ("sft", {"prompt": "a", "completion": "b", "system": "c"}, "a system column needs conversations"),
        ("sft", {"prompt": "a", "completion": "b", "label": False}, "label tells good answers from bad ones"),
        ("sft", {"instruction": "a", "output": "b", "history": ["x"]}, "history[0] is not a pair"),
        ("sft", {"instruction": "a", "output": "b", "history": 5}, "history is not a list"),
        ("sft", {"conversations": [{"from": [], "value": "x"}]}, "conversations[0]: from is [], expected one"),
        ("sft", {"conversations": [{"from": "bing", "value": "x"}]}, "conversations[0]: from is 'bing', expected one"),
        ("sft", {"question": "x"}, "has the columns question; for sft expected one of: messages; conversations;"),
        ("dpo", {"messages": [USER, BOT]}, "has the columns messages; for dpo expected one of: prompt, chosen,"),
        ("dpo", {"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
        ("dpo", {"prompt": "Hi", "chosen": "a", "rejected": ""}, "rejected is empty"),
        ("dpo", {"prompt": "Hi", "chosen": [BOT], "rejected": "a"}, "prompt, chosen, rejected must all be text or all"),
        ("dpo", {"prompt": "Ho", "chosen": [USER, BOT], "rejected": [USER, RUDE]}, "prompt is text, and not the last"),
        ("dpo", {"chosen": [BOT], "rejected": [RUDE]}, "chosen and rejected have no common prompt"),
        ("dpo", {"chosen": [USER, BOT], "rejected": [USER, BOT]}, "chosen and rejected are equal"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "chosen and rejected do not begin with a common prompt"),
        ("dpo", {"chosen": "Who? ", "rejected": "Who? Mark"}, "chosen and rejected do not begin with a common prompt"),
        ("dpo", {"chosen": "Who? Mark", "rejected": "Who? Mark"}, "chosen and rejected are equal"),
        ("dpo", {"chosen": "Who? Mark", "rejected": "Who? Me", "system": "x"}, "a system column needs conversations"),
        ("dpo", {"chosen": "Who? Mark", "rejected": [RUDE]}, "chosen is not a list of messages"),
        ("sft", {"prompt": [USER], "completion": [BOT, USER]}, "completion: the last message is not the assistant's"),
        ("dpo", {"prompt": [USER], "chosen": [USER], "rejected": [BOT]}, "chosen: the last message is not the"),
        ("dpo", {"chosen": [USER, BOT], "rejected": [USER, RUDE, USER]}, "rejected: the last message is not the"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_with_its_reason(kind, row, message):
    """The field, what is wrong with it, and what was expected."""
    with pytest.raises(BadRow) as refusal:
        canonical(row, recognised(row, kind))

    assert str(refusal.value).startswith(message)


def test_a_row_unlike_the_first_is_told_how_the_file_is_read():
    """One file has one shape, that of its first row."""
    shape = recognised({"text": "a"}, "sft")

    with pytest.raises(BadRow, match=r"text is missing \(the file is read as plain text, like its first row\)"):
        canonical({"messages": [USER, BOT]}, shape)


def test_the_documented_shapes_are_those_of_the_code():
    """data.md has a row for every shape: its columns, those it may use, and what it becomes."""
    page = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")

    for kind in ("sft", "dpo"):
        for shape in SHAPES[kind]:
            cells = [kind.upper(), shape.name, *(_listed(c) for c in (shape.columns, shape.optional, shape.becomes))]
            assert f"| {' | '.join(cells)} |" in page, shape.name


def _listed(columns: tuple[str, ...]) -> str:
    return ", ".join(f"`{column}`" for column in columns) or "-"
