"""Reference answers are the box's word: each line is bounded and must be sane, or the file is no reference."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.artifacts import adapter, reference
from daemon.artifacts.reference import BadReference
from remote_payload.contract import MAX_JSON_BYTES

HALF = math.log(0.5)
POSITION = {"top": [[1, HALF]], "tail": HALF, "base_top": [[2, HALF]], "base_tail": HALF}


def good() -> list[dict[str, Any]]:
    """A header and one prompt of three tokens, two of them the answer."""
    header = {"vocab": 10, "probes": [{"text": "a", "ids": [1]}], "eos": 3}
    return [header, {"prompt_text": "q", "ids": [1, 2, 3], "start": 1, "positions": [dict(POSITION), dict(POSITION)]}]


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_a_sane_one_is_read(tmp_path: Path) -> None:
    found = reference.read(written(tmp_path / "r", good()))

    assert (found.vocabulary, found.end, found.positions) == (10, 3, 2)


def at(*where: Any, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(lines: list[Any]) -> None:
        place: Any = lines
        for step in where[:-1]:
            place = place[step]
        place[where[-1]] = value

    return change


BAD: list[tuple[Callable[[list[dict[str, Any]]], None], str]] = [
    (lambda lines: lines.pop(), "1 lines"),
    (at(0, "vocab", value=0), "0 is not an integer from 1"),
    (at(0, "vocab", value=True), "True is not an integer"),
    (at(0, "probes", value={}), "expected a list of at most"),
    (at(0, "eos", value=10), "10 is not an integer from 0 to 9"),
    (at(1, "ids", value=[1, 2, 99]), "99 is not an integer"),
    (at(1, "start", value=3), "3 is not an integer from 1 to 2"),
    (at(1, "positions", value=[POSITION]), "1 positions for ids 1 to 3"),
    (at(1, "prompt_text", value=7), "expected a text"),
    (at(1, "positions", 0, "top", value=[]), "a position without tokens"),
    (at(1, "positions", 0, "top", value=[[1, HALF], [1, HALF]]), "or with one twice"),
    (at(1, "positions", 0, "tail", value=0.1), "0.1 is not the logarithm"),
    (at(1, "positions", 0, "tail", value=float("nan")), "NaN is not a number"),
    (at(1, "positions", 0, "tail", value=-0.1), "add up to 1.405"),
    (at(1, "positions", 0, value=7), "TypeError"),
    (at(1, "positions", 0, "top", value=[[]]), "IndexError"),
]


@pytest.mark.parametrize(("deed", "says"), BAD, ids=[row[1] for row in BAD])
def test_what_is_none(tmp_path: Path, deed: Callable[[list[dict[str, Any]]], None], says: str) -> None:
    lines = good()
    deed(lines)

    with pytest.raises(BadReference, match=says):
        reference.read(written(tmp_path / "r", lines))


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "r").touch()
    os.truncate(tmp_path / "r", reference.MAX_BYTES + 1)

    with pytest.raises(BadReference, match="larger than"):
        reference.read(tmp_path / "r")


ADAPTERS: list[tuple[dict[str, bytes | int], str]] = [
    ({}, "missing in"),
    ({"adapter_model.safetensors": b"x", "adapter_config.json": b"{"}, "is not JSON"),
    ({"adapter_model.safetensors": b"x", "adapter_config.json": b"[]"}, "is not a JSON object"),
    ({"adapter_model.safetensors": b"x", "adapter_config.json": MAX_JSON_BYTES + 1}, "is absurdly large"),
]


@pytest.mark.parametrize(("files", "says"), ADAPTERS, ids=[row[1] for row in ADAPTERS])
def test_a_folder_that_is_no_adapter(tmp_path: Path, files: dict[str, bytes | int], says: str) -> None:
    """Told in words before anything is rented."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else b"")
        if isinstance(content, int):
            os.truncate(tmp_path / name, content)

    (objection,) = adapter.objections(tmp_path, "any/m", None)

    assert says in objection
