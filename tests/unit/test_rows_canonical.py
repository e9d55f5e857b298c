"""One data file read: what is counted, what is refused with its line, and the canonical file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import SpecError
from daemon.rows import canonical, readers
from daemon.rows.canonical import SHOWN, kind_of, read
from remote_payload.contract import DataFile
from remote_payload.layout import Layout
from remote_payload.rows import read_sft

GOOD = {"prompt": "Hi", "completion": "Hello"}


def written(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_bad_rows_are_named_by_line_and_nothing_is_written(tmp_path):
    """Two rows of four are bad: file, line and reason are given, the others count, no canonical file appears."""
    path = written(tmp_path, GOOD, "", {"prompt": "Hi", "completion": ""}, "[1]", GOOD)

    found = read(path, "sft", tmp_path / "state")

    assert (found.survey.rows, found.bad, found.canonical) == (2, 2, None)
    assert found.problems == (f"{path}:3: completion is empty", f"{path}:4: is not a JSON object")
    assert list((tmp_path / "state").iterdir()) == []


def test_only_the_first_problems_are_told_but_all_are_counted(tmp_path):
    """A file of nonsense gives a readable list and the whole number."""
    found = read(written(tmp_path, *["nonsense"] * 1000), "sft")

    assert (len(found.problems), found.bad) == (SHOWN, 1000)


def test_the_canonical_file_is_named_by_its_content(tmp_path):
    """Converted, whole, under its own sha256; the original's is kept; a second reading changes nothing."""
    path = written(tmp_path, {"instruction": "Hi", "output": "Hello", "id": 7})
    expected = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

    found = read(path, "sft", tmp_path / "state")
    again = read(path, "sft", tmp_path / "state")

    made = found.canonical
    assert again.canonical == made
    assert json.loads(made.path.read_text()) == expected
    assert made.path.name == f"{made.sha256}.jsonl"
    assert (made.sha256, made.rows) == (hashlib.sha256(made.path.read_bytes()).hexdigest(), 1)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.unused == ("id",)
    assert list((tmp_path / "state").iterdir()) == [made.path]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """What was hashed is what is trained on, or nothing is."""
    path = written(tmp_path, GOOD)

    def changing(source):
        yield 1, GOOD
        os.utime(source, ns=(0, 0))

    monkeypatch.setattr(readers, "read", changing)

    with pytest.raises(SpecError, match=r"data\.jsonl:1: the file changed while it was being read"):
        read(path, "sft", tmp_path / "state")
    assert list((tmp_path / "state").iterdir()) == []


def test_an_empty_or_missing_file_is_refused(tmp_path):
    """No rows is a problem, no file an error."""
    assert read(written(tmp_path), "sft").problems == (f"{tmp_path / 'data.jsonl'}:1: the file has no rows",)
    with pytest.raises(SpecError, match=r"none\.jsonl:1: No such file"):
        read(tmp_path / "none.jsonl", "sft")


def test_tools_that_no_file_can_carry_are_refused(tmp_path):
    """NaN inside JSON text is valid for Python's parser alone."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    path = written(tmp_path, {"messages": turns, "tools": '[{"name": "f", "n": NaN}]'})

    assert read(path, "sft").problems[0].startswith(f"{path}:1: tools: Out of range float")


def test_the_box_reads_what_is_written_here(tmp_path):
    """A conversation with tools passes the check of the payload, row for row."""
    call = {"name": "rate", "arguments": {"day": 1}}
    turns = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Hello"},
    ]
    path = written(tmp_path, {"messages": turns, "tools": [{"name": "rate"}]})
    made = read(path, "sft", tmp_path / "data").canonical

    table = read_sft(Layout(tmp_path), DataFile(f"data/{made.path.name}", made.sha256, made.rows))

    assert (len(table.rows), table.problems) == (1, [])


@pytest.mark.parametrize(
    ("row", "kind"), [(GOOD, "sft"), ({"chosen": "a", "rejected": "b"}, "dpo"), ("nonsense", "sft"), ("", "sft")]
)
def test_pairs_are_for_dpo(tmp_path, row, kind):
    """The first row that can be read tells what a file is for."""
    assert kind_of(written(tmp_path, row)) == kind


def test_memory_stays_flat(tmp_path):
    """3 MB of rows are read in less than 1 MB: one row at a time is held."""
    import tracemalloc

    row = json.dumps({"text": "x" * 10_000})
    path = tmp_path / "data.jsonl"
    path.write_text((row + "\n") * 300)  # 3 MB

    tracemalloc.start()
    canonical.read(path, "sft", tmp_path / "state")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20
