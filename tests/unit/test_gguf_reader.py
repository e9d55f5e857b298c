"""The GGUF parser against files made byte by byte: what it reads, and everything it must refuse."""

import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.artifacts import gguf, tiny

HEADER = {"general.architecture": "llama", "answer": 42, "scores": [0.5, -1.5], "yes": True, "words": ["a", "b\u00e9"]}
TENSORS: dict[str, tiny.Packed] = {
    "first": ((32, 2), "Q8_0", bytes(range(68))),
    "second": ((5,), "F32", bytes(range(20))),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small, honest GGUF with two tensors that both need padding."""
    path = tmp_path / "model.gguf"
    tiny.write(path, HEADER, TENSORS)
    return path


def test_reads_what_was_written(path: Path) -> None:
    """Metadata, shapes, types and the exact bytes of every tensor come back."""
    found = gguf.read(path)

    assert found.metadata == HEADER
    assert [(t.name, t.shape, t.type.name) for t in found.tensors] == [
        ("first", (32, 2), "Q8_0"),
        ("second", (5,), "F32"),
    ]
    raw = path.read_bytes()
    assert [raw[t.offset : t.offset + t.nbytes] for t in found.tensors] == [
        content for _, _, content in TENSORS.values()
    ]
    assert found.size == len(raw) and found.data_offset % found.alignment == 0


def test_agrees_with_the_tiny_model(tmp_path: Path) -> None:
    """The generated model that proves the verifier has every tensor of its config and ends at the last one."""
    path = tmp_path / "tiny.gguf"
    tiny.write_tiny(path)

    found = gguf.read(path)

    assert len(found.tensors) == 12
    assert found.tensors[-1].offset + found.tensors[-1].nbytes == found.size


def test_a_large_vocabulary_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    """49,000 tokens and as many merges parse in less than 0.2 s of processor time."""
    words = [f"token{i}" for i in range(49_000)]
    path = tmp_path / "wide.gguf"
    tiny.write(path, {"tokenizer.ggml.tokens": words, "tokenizer.ggml.merges": words}, TENSORS)
    began = time.process_time()

    found = gguf.read(path)

    assert time.process_time() - began < 0.2
    assert found.metadata["tokenizer.ggml.tokens"] == words


def put(at: int, form: str, value: int) -> Callable[[bytes], bytes]:
    """A change of the number at byte `at`."""
    return lambda raw: raw[:at] + struct.pack(form, value) + raw[at + struct.calcsize(form) :]


def after(mark: bytes, skip: int, form: str, value: int) -> Callable[[bytes], bytes]:
    """A change of the number `skip` bytes behind the first `mark`."""
    return lambda raw: put(raw.index(mark) + len(mark) + skip, form, value)(raw)


HUGE = 1 << 60
LIES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("bad magic", put(0, "<I", 0), "magic"),
    ("version 2", put(4, "<I", 2), "version 2"),
    ("2^60 tensors", put(8, "<Q", HUGE), "tensors are over the limit"),
    ("2^60 keys", put(16, "<Q", HUGE), "metadata keys are over the limit"),
    ("2^60 bytes of key", put(24, "<Q", HUGE), "over the limit"),
    ("unknown value type", after(b"answer", 0, "<I", 99), "value type 99"),
    ("array of arrays", after(b"scores", 4, "<I", 9), "array of value type 9"),
    ("2^60 array elements", after(b"scores", 8, "<Q", HUGE), "elements of scores are over the limit"),
    ("2^60 bytes of string in an array", after(b"words", 16, "<Q", HUGE), "words: a string"),
    ("array past the end", after(b"scores", 8, "<Q", 1 << 20), "past the end"),
    ("string past the end", after(b"words", 16, "<Q", 1 << 20), "words: a string"),
    ("no dimensions", after(b"first", 0, "<I", 0), "0 dimensions"),
    ("2^31 dimensions", after(b"first", 0, "<I", 1 << 31), "dimensions"),
    ("dimension 2^40", after(b"first", 12, "<Q", 1 << 40), "does not fit"),
    ("dimension 0", after(b"first", 12, "<Q", 0), "does not fit"),
    ("rows that are no whole blocks", after(b"first", 4, "<Q", 16), "whole blocks"),
    ("unknown tensor type", after(b"first", 20, "<I", 77), "tensor type 77"),
    ("offset 2^62", after(b"second", 16, "<Q", 1 << 62), "offset"),
    ("overlapping tensors", after(b"second", 16, "<Q", 32), "offset"),
    ("last byte cut", lambda raw: raw[:-1], "of a file of"),
    ("half cut", lambda raw: raw[: len(raw) // 2], "past the end|of a file of|fit"),
    ("junk appended", lambda raw: raw + bytes(64), "64 bytes follow the last tensor"),
    ("padding that is not zero", lambda raw: raw[:-1] + b"x", "padding"),
    ("empty", lambda raw: b"", "past the end"),
]


@pytest.mark.parametrize(("lie", "says"), [(lie, says) for _, lie, says in LIES], ids=[name for name, _, _ in LIES])
def test_refuses(path: Path, lie: Callable[[bytes], bytes], says: str) -> None:
    """Each malformed file is refused by the check that is meant for it, whatever it claims about its size."""
    path.write_bytes(lie(path.read_bytes()))

    with pytest.raises(gguf.GgufError, match=says):
        gguf.read(path)


@pytest.mark.parametrize("count", [0, 1, 7, 24, 63, 200])
def test_a_cut_header_is_refused(path: Path, count: int) -> None:
    """A file that ends anywhere inside its header is refused and never read past its end."""
    path.write_bytes(path.read_bytes()[:count])

    with pytest.raises(gguf.GgufError):
        gguf.read(path)


def test_a_header_without_measure_is_refused(tmp_path: Path) -> None:
    """Array beside array, each within its limit, may not fill this computer's memory: a byte there is eight here."""
    path = tmp_path / "model.gguf"
    tiny.write(path, {f"k{i}": "x" * (4 << 20) for i in range(20)}, TENSORS)

    tracemalloc.start()
    try:
        with pytest.raises(gguf.GgufError, match="header is longer than"):
            gguf.read(path)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 80 << 20


@pytest.mark.parametrize("length", [0, 30, 200])
def test_a_file_that_is_cut_while_it_is_read_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """As where the disk fails: an error here, where mapped memory would end the whole process by a signal."""
    begin = gguf._Reader.__init__

    def cut(reader: gguf._Reader, *file: Any) -> None:
        begin(reader, *file)
        os.truncate(path, length)

    monkeypatch.setattr(gguf._Reader, "__init__", cut)

    with pytest.raises(gguf.GgufError, match="cut off"):
        gguf.read(path)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "a\udc80"])
def test_names_that_cannot_be_shown_are_refused(tmp_path: Path, name: str) -> None:
    """They stand in messages and events; a terminal or UTF-8 makes something else of such ones."""
    path, raw = tmp_path / "model.gguf", name.encode("utf-8", "surrogateescape")
    tiny.write(path, {"k" * len(raw): 1}, {"n" * len(raw): TENSORS["second"]})
    whole = path.read_bytes()

    for letter in (b"k", b"n"):
        path.write_bytes(whole.replace(letter * len(raw), raw))
        with pytest.raises(gguf.GgufError, match="cannot be shown"):
            gguf.read(path)


def test_a_key_may_not_appear_twice(path: Path) -> None:
    """Two values for one key would let two readers see two models."""
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"scores", b"answer"))

    with pytest.raises(gguf.GgufError, match="appears twice"):
        gguf.read(path)


def test_a_tensor_name_may_not_appear_twice(tmp_path: Path) -> None:
    """Two tensors of one name would let two readers use different weights."""
    path = tmp_path / "model.gguf"
    tiny.write(path, HEADER, {"aa": TENSORS["second"], "ab": TENSORS["second"]})
    path.write_bytes(path.read_bytes().replace(b"ab", b"aa"))

    with pytest.raises(gguf.GgufError, match="'aa' appears twice"):
        gguf.read(path)


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    """Of an architecture that is not predicted, at depth "hash", nothing else would miss the weights."""
    path = tmp_path / "model.gguf"
    tiny.write(path, HEADER, {})

    with pytest.raises(gguf.GgufError, match="no tensors"):
        gguf.read(path)


@pytest.mark.parametrize("alignment", [0, 3, 1 << 20])
def test_an_odd_alignment_is_refused(tmp_path: Path, alignment: int) -> None:
    """An alignment is a power of two of sane size; zero would divide by itself."""
    path = tmp_path / "model.gguf"
    tiny.write(path, {"general.alignment": alignment}, TENSORS)

    with pytest.raises(gguf.GgufError, match="alignment"):
        gguf.read(path)
