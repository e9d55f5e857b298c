"""Data files of every format as numbered rows, and what is said about a broken one."""

from __future__ import annotations

import io
import json
import sys

import pytest

from daemon.errors import SpecError
from daemon.rows import readers, window
from daemon.rows.shapes import BadRow

ROWS = [{"prompt": "a, b", "completion": "c\nd"}, {"prompt": "é\u2028", "completion": "2"}]


def parquet(rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


FILES = {
    "lines.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS).encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\n\n" + json.dumps(ROWS[1]).encode(),
    "array.json": b" \n" + json.dumps(ROWS, indent=1).encode(),
    "array.jsonl": b"\xef\xbb\xbf" + json.dumps(ROWS, ensure_ascii=False).encode(),
    "comma.csv": 'prompt,completion\r\n"a, b","c\nd"\r\né\u2028,2\r\n'.encode(),
    "semicolon.csv": '\ufeffprompt;completion\n"a, b";"c\nd"\n\né\u2028;2'.encode(),
    "tab.tsv": 'prompt\tcompletion\na, b\t"c\nd"\né\u2028\t2\n'.encode(),
    "rows.parquet": parquet(ROWS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    """JSON lines, an array, CSV and Parquet of the same rows are the same rows."""
    (tmp_path / name).write_bytes(FILES[name])

    assert [row for _, row in readers.read(tmp_path / name)] == ROWS


def test_nested_columns_come_out_of_tables(tmp_path):
    """CSV holds messages as JSON text; Parquet fills objects of one column up with nulls, which go again."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "name": "x"}]
    (tmp_path / "a.csv").write_text('messages,n\n"' + json.dumps(turns).replace('"', '""') + '",1\n[,2\n')
    (tmp_path / "a.parquet").write_bytes(parquet([{"messages": turns, "system": None}]))

    (_, row), (line, broken) = readers.read(tmp_path / "a.csv")
    assert row == {"messages": turns, "n": "1"}
    assert isinstance(broken, BadRow) and line == 3 and str(broken).startswith("messages is not JSON")
    assert list(readers.read(tmp_path / "a.parquet")) == [(1, {"messages": turns})]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_an_array_keeps_its_lines_however_it_is_read(tmp_path, monkeypatch, size):
    """Items are numbered by the line they begin on, also where a piece of the file ends inside one."""
    monkeypatch.setattr(window, "READ", size)
    (tmp_path / "a.json").write_text('[\n  {"text": "ä"},\n  {"text":\n    "b"}, {"text": ""},\n  {"text": "c"}\n]\n')

    found = list(readers.read(tmp_path / "a.json"))

    assert found == [(2, {"text": "ä"}), (3, {"text": "b"}), (4, {"text": ""}), (5, {"text": "c"})]


def test_a_value_ends_where_it_ends_not_where_a_piece_of_the_file_does(tmp_path, monkeypatch):
    """A number can be read before its last digit is there."""
    monkeypatch.setattr(window, "READ", 1)
    (tmp_path / "a.json").write_text("[12, 345]")

    assert [value for _, value in readers.read(tmp_path / "a.json")] == [12, 345]


@pytest.mark.parametrize(
    ("name", "content", "rows", "line", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', 1, 2, "is not JSON (Expecting value"),
        ("a.jsonl", b'{"a": NaN}', 0, 1, "is not JSON (NaN is not JSON)"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": "\xff"}', 1, 3, "is not UTF-8 text"),
        ("a.jsonl", b"[" * 100_000, 0, 1, "is not JSON"),
        ("a.csv", b"a,b\n1,2\n3\n", 1, 3, "has 1 cells, the header names 2 columns"),
        ("a.csv", b"a,b\n1,\xff\n", 0, 2, "is not UTF-8 text"),
    ],
)
def test_a_row_that_cannot_be_read_is_counted(tmp_path, name, content, rows, line, message):
    """It comes as a BadRow with its line, and the rows around it are still read."""
    (tmp_path / name).write_bytes(content)
    if content.startswith(b"["):
        with pytest.raises(SpecError, match=message):
            list(readers.read(tmp_path / name))
        return

    found = list(readers.read(tmp_path / name))

    (bad,) = [(number, row) for number, row in found if isinstance(row, BadRow)]
    assert (len(found) - 1, bad[0]) == (rows, line)
    assert str(bad[1]).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{}, ", r"a\.json:1: is not JSON \(Expecting value"),
        ("a.json", b"[{}] x", r"a\.json:1: is not JSON \(more text after the array\)"),
        ("a.json", b"[{},\n,{}]", r"a\.json:2: is not JSON \(Expecting value"),
        ("a.json", b"[{},\n{}\n{}]", r"a\.json:3: is not JSON \(expected ',' or '\]'\)"),
        ("a.json", b"[{},]", r"a\.json:1: is not JSON \(a comma before the end\)"),
        ("a.json", b'[{},\n{"a": "\xff"}]', r"a\.json:2: is not UTF-8 text"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', r"a\.csv:3: is not CSV \(unexpected end of data\)"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1: names a column twice"),
        ("a.parquet", b"PAR1 or not", r"a\.parquet:1: is not Parquet that can be read"),
        ("a.xlsx", b"", r"a\.xlsx:1: \.xlsx is no format of data \(expected \.jsonl, \.ndjson, \.json, \.csv, "),
        ("a", b"", r"a:1: no suffix is no format of data"),
    ],
)
def test_a_file_that_is_broken_as_a_whole_is_refused_with_its_line(tmp_path, name, content, message):
    """There are no rows to trust behind the place where the form is lost."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(SpecError, match=message):
        list(readers.read(tmp_path / name))


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    """A file of the wrong kind must not be read into memory whole."""
    monkeypatch.setattr(readers, "MAX_ROW", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * (2 << 20))

    with pytest.raises(SpecError, match=r"a\.jsonl:1: is longer than 1 MiB"):
        list(readers.read(tmp_path / "a.jsonl"))


def test_parquet_without_its_package_names_the_command(tmp_path, monkeypatch):
    """pyarrow is an extra: what to type is part of the error."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(FILES["rows.parquet"])

    with pytest.raises(SpecError, match="needs pyarrow") as refusal:
        list(readers.read(tmp_path / "a.parquet"))

    assert refusal.value.hint == "pip install 'homeport[data]'"
