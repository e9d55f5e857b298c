"""The data check: every accepted shape, every refusal with its line, and the canonical file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.domain.rows import SHOWN, read_rows, write_canonical
from daemon.errors import SpecError

USER = {"role": "user", "content": "Hi"}
BOT = {"role": "assistant", "content": "Hello"}
RUDE = {"role": "assistant", "content": "What?"}
SYSTEM = {"role": "system", "content": "Be kind"}


def written(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def canonical(path: Path, kind: str, folder: Path) -> list[dict[str, Any]]:
    out, _, _ = write_canonical(read_rows(path, kind), folder / "state")
    return [json.loads(line) for line in out.read_text().splitlines()]


CONVERTED = {"Alpaca instructions", "ShareGPT conversations", "preference conversations"}
SHAPES = [
    ("sft", "messages", {"messages": [USER, BOT]}, {"messages": [USER, BOT]}),
    ("sft", "messages", {"messages": [USER, BOT], "system": "Be kind"}, {"messages": [SYSTEM, USER, BOT]}),
    (
        "sft",
        "prompt and completion",
        {"prompt": "1+1=", "completion": "2", "n": 1},
        {"prompt": "1+1=", "completion": "2"},
    ),
    ("sft", "prompt and completion", {"prompt": [USER], "completion": [BOT]}, {"prompt": [USER], "completion": [BOT]}),
    ("sft", "plain text", {"text": "Once upon a time"}, {"text": "Once upon a time"}),
    ("sft", "Alpaca instructions", {"instruction": "Hi", "input": "", "output": "Hello"}, {"messages": [USER, BOT]}),
    (
        "sft",
        "Alpaca instructions",
        {"instruction": "Add", "input": "1, 2", "output": "Hello", "system": "Be kind"},
        {"messages": [SYSTEM, {"role": "user", "content": "Add\n\n1, 2"}, BOT]},
    ),
    (
        "sft",
        "ShareGPT conversations",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [USER, BOT]},
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
        {"prompt": [USER], "chosen": [BOT], "rejected": [RUDE], "system": "Be kind"},
        {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [RUDE]},
    ),
    (
        "dpo",
        "preference conversations",
        {"chosen": [SYSTEM, USER, BOT], "rejected": [SYSTEM, USER, RUDE]},
        {"prompt": [SYSTEM, USER], "chosen": [BOT], "rejected": [RUDE]},
    ),
]


@pytest.mark.parametrize(("kind", "shape", "row", "expected"), SHAPES, ids=lambda v: v if isinstance(v, str) else "")
def test_each_shape_is_recognised_and_converted(tmp_path, kind, shape, row, expected):
    """What comes in as any of the known shapes is written in the form that the box reads."""
    path = written(tmp_path, row)

    report = read_rows(path, kind)

    assert (report.shape, report.rows, report.bad, report.problems) == (shape, 1, 0, ())
    assert report.converted == (shape in CONVERTED)
    assert canonical(path, kind, tmp_path) == [expected]


BAD = [
    ("sft", {"messages": [USER]}, "messages: the last message is not the assistant's"),
    ("sft", {"messages": [USER, {"role": "assistant", "content": " "}]}, "messages[1].content is empty"),
    ("sft", {"messages": [{"role": "tool", "content": "x"}, BOT]}, "messages[0]: role is 'tool', expected one of"),
    ("sft", {"messages": [USER, BOT | {"tool_calls": [1]}]}, "messages[1]: tool calls cannot be trained yet"),
    ("sft", {"messages": [USER, BOT], "tools": [{}]}, "tools cannot be trained with yet"),
    ("sft", {"messages": "Hi"}, "messages is not a list of messages"),
    ("sft", {"messages": [SYSTEM, USER, BOT], "system": "x"}, "system is given twice"),
    (
        "sft",
        {"messages": [USER, {"role": "assistant", "content": "\ud800"}]},
        "messages[1].content holds half a surrogate",
    ),
    ("sft", "[1, 2]", "is not a JSON object"),
    ("sft", '{"messages": ', "is not JSON (Expecting value"),
    ("sft", '{"text": NaN}', "is not JSON (NaN is not JSON)"),
    ("dpo", {"prompt": "Hi", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
    ("dpo", {"prompt": "Hi", "chosen": "a", "rejected": ""}, "rejected is empty"),
    ("dpo", {"prompt": "Hi", "chosen": [BOT], "rejected": "a"}, "prompt, chosen, rejected must all be text or all be"),
    ("dpo", {"prompt": "Hi", "chosen": "a"}, "rejected is missing"),
]
GOOD = {"sft": {"messages": [USER, BOT]}, "dpo": {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}}


@pytest.mark.parametrize(("kind", "row", "message"), BAD)
def test_a_bad_row_is_named_by_its_line(tmp_path, kind, row, message):
    """The third line of four is bad: file, line and reason are given, the others count."""
    path = written(tmp_path, GOOD[kind], "", row, GOOD[kind])

    report = read_rows(path, kind)

    assert (report.rows, report.bad) == (2, 1)
    assert report.problems[0].startswith(f"{path}:3: {message}")
    with pytest.raises(SpecError):
        write_canonical(report, tmp_path / "state")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("sft", {"question": "x"}, "has the columns question; for sft expected one of: messages; conversations;"),
        (
            "dpo",
            {"messages": [USER, BOT]},
            "has the columns messages; for dpo expected one of: chosen, prompt, rejected;",
        ),
        ("dpo", {"chosen": [BOT], "rejected": [RUDE]}, "chosen and rejected have no common prompt"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "prompt is missing (only conversations"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_what_was_found(tmp_path, kind, row, message):
    """The columns that are there and those that were expected."""
    report = read_rows(written(tmp_path, row), kind)

    assert report.rows == 0
    assert report.problems[0].startswith(f"{tmp_path / 'data.jsonl'}:1: {message}")


def test_only_the_first_problems_are_told_but_all_are_counted(tmp_path):
    """A file of nonsense gives a readable list and the whole number."""
    report = read_rows(written(tmp_path, *["nonsense"] * 1000), "sft")

    assert (len(report.problems), report.bad) == (SHOWN, 1000)


def test_an_array_keeps_its_lines(tmp_path):
    """Items of one JSON array are numbered by the line they begin on."""
    text = '[\n  {"text": "a"},\n  {"text":\n    "b"}, {"text": ""},\n  {"text": "c"}\n]\n'
    path = tmp_path / "data.json"
    path.write_text(text)

    report = read_rows(path, "sft")

    assert report.rows == 3
    assert report.problems == (f"{path}:4: text is empty",)


@pytest.mark.parametrize("text", ["[{}, ", "[{}] x", "[{},,{}]", "[" * 100_000])
def test_a_broken_array_is_refused_whole(tmp_path, text):
    """There are no rows to trust in a file that does not parse."""
    path = tmp_path / "data.json"
    path.write_text(text)

    with pytest.raises(SpecError, match="is not JSON"):
        read_rows(path, "sft")


def test_duplicates_and_lengths_are_counted(tmp_path):
    """Equal rows are counted, not refused; lengths are in characters of text."""
    report = read_rows(written(tmp_path, {"text": "four"}, {"text": "four"}, {"text": "sixsix"}), "sft")

    assert (report.rows, report.duplicates, report.characters, report.longest) == (3, 1, 14, 6)


@pytest.mark.parametrize("name", ["data.parquet", "data.csv", "data"])
def test_other_formats_are_refused_clearly(tmp_path, name):
    """Parquet and CSV are not read yet, and the message says what is."""
    (tmp_path / name).write_bytes(b"PAR1")

    with pytest.raises(SpecError, match=r"cannot be read yet \(expected JSONL or JSON\)"):
        read_rows(tmp_path / name, "sft")


def test_an_empty_or_missing_file_is_refused(tmp_path):
    """No rows is a problem, no file an error."""
    assert read_rows(written(tmp_path), "sft").problems == (f"{tmp_path / 'data.jsonl'}:1: the file has no rows",)
    with pytest.raises(SpecError, match="No such file"):
        read_rows(tmp_path / "none.jsonl", "sft")


def test_a_unicode_line_separator_ends_no_row(tmp_path):
    """Only a line feed does: a text may hold U+2028, and a file may begin with a byte order mark."""
    path = tmp_path / "data.jsonl"
    path.write_bytes('\ufeff{"text": "a\u2028b"}\r\n'.encode())

    assert read_rows(path, "sft").rows == 1


def test_the_canonical_file_is_named_by_its_content(tmp_path):
    """Written twice it is one file; its sha256 is its name."""
    report = read_rows(written(tmp_path, {"text": "a"}, {"text": "b"}), "sft")

    first = write_canonical(report, tmp_path / "state")
    second = write_canonical(report, tmp_path / "state")

    assert first == second
    assert first[0].name == f"{first[1]}.jsonl"
    assert first[2] == 2
    assert list((tmp_path / "state").iterdir()) == [first[0]]


def test_a_file_that_changed_after_the_check_is_not_written(tmp_path):
    """What was checked is what is trained on, or nothing."""
    path = written(tmp_path, {"text": "a"})
    report = read_rows(path, "sft")
    written(tmp_path, {"text": "b"})

    with pytest.raises(SpecError, match="changed while"):
        write_canonical(report, tmp_path / "state")
