"""The script that llama.cpp runs in, here without its fence and process: what it says, and how it gives up."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.artifacts import child, llama_child, tiny


@pytest.fixture
def asked(tmp_path: Path) -> child.Request:
    """About the tiny model: two prompts, one of them longer than a batch."""
    tiny.write_tiny(tmp_path / "tiny.gguf")
    sets = ((0, 1), (2,))
    return child.Request(
        gguf=str(tmp_path / "tiny.gguf"),
        texts=("ab", "<end>"),
        ends=(tiny.END, 97),
        prompts=(child.Ask((97, 98, 99), 1, (sets, sets)), child.Ask(tuple(range(97, 107)) * 60, 598, (sets, sets))),
        greedy_ids=(97, 98),
        greedy_tokens=3,
        threads=1,
    )


def said(asked: child.Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the script prints when it is run in this process."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asdict(asked))))
    monkeypatch.setattr(llama_child, "STARTED", time.monotonic(), raising=False)
    llama_child.main()
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


async def test_it_says_what_the_fenced_child_says(
    asked: child.Request, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fence and pipe change nothing of the answer."""
    fenced = await child.ask(asked, 1 << 20)

    here = child._parsed(asked, json.dumps(said(asked, monkeypatch, capsys)).encode())

    assert (here.vocabulary, here.tokens, here.stops) == (fenced.vocabulary, fenced.tokens, fenced.stops)
    assert (here.prompts, here.greedy_text) == (fenced.prompts, fenced.greedy_text)


def test_an_answer_ends_where_the_model_ends_it(asked: child.Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own end of text, or as many tokens as were asked for; none asked for is none."""
    model = llama_child.Model(asked.gguf, context=64, sequences=1, threads=1)

    monkeypatch.setattr(model, "stops", lambda token: False)
    _, ended = model.greedy([97, 98], 3)
    monkeypatch.setattr(model, "stops", lambda token: True)

    assert not ended
    assert model.greedy([97, 98], 3) == ("", True)
    assert model.greedy([97, 98], 0) == ("", False)


def test_a_file_that_llama_refuses_ends_it_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))

    with pytest.raises(SystemExit, match="refuses the file"):
        llama_child.Model(str(tmp_path / "bad.gguf"), context=8, sequences=1, threads=1)


def test_a_position_of_which_nothing_can_be_said() -> None:
    """Logits that are no numbers are told as that; no probability is left is the floor, since JSON has no infinity."""
    assert llama_child._position(np.array([1.0, np.nan]), [[0]]) == {"finite": False}
    [scores] = llama_child._position(np.array([0.0, -2000.0]), [[0]])["sets"]
    assert (scores["logs"], scores["tail"]) == ([0.0], llama_child.FLOOR)


def test_prompts_are_taken_together_as_far_as_they_fit() -> None:
    prompts = [{"ids": [0] * length} for length in (1000, 24, 1, 5000)]

    assert [[len(p["ids"]) for p in group] for group in llama_child.grouped(prompts)] == [[1000, 24], [1], [5000]]
