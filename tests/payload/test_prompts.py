"""Which prompts the workstation is to repeat, where all rows are long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from payload_box import write_rows

from daemon.artifacts import reference
from remote_payload import prompts
from remote_payload.contract import Integration, JobFile, Lora, ModelSource
from remote_payload.layout import Layout

ANSWER = 64  # tokens, more than any answer has


class Words:
    """A tokenizer of single characters, which puts its first id before a text of its own accord."""

    bos_token, bos_token_id = "^", 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [0 if c == self.bos_token else ord(c) for c in text]
        return {"input_ids": [0, *ids] if add_special_tokens else ids}


def chosen(root: Path, *asked: str) -> list[prompts.Prompt]:
    rows: list[Any] = [{"prompt": text, "completion": "so"} for text in asked]
    job = JobFile("j", 1, "n", ModelSource("m"), [], Integration("T", len(rows), 0), Lora(), ["Q8_0"])
    job = JobFile(**(vars(job) | {"sft_data": write_rows(root, rows)}))
    return prompts.choose(Layout(root), job, Words())


@pytest.mark.parametrize("length", [prompts.LONGEST, 20_000, 300_001])
def test_a_long_prompt_is_cut_to_what_the_workstation_reads(tmp_path: Path, length: int) -> None:
    """The training is paid for by then. Its end is kept, where the answer begins, and its ids are those of its text."""
    (found,) = chosen(tmp_path, "." * length + "why? ")

    assert prompts.LONGEST // 4 < len(found.ids) <= prompts.LONGEST
    assert len(found.ids) + ANSWER <= min(reference.MAX_IDS, 1024)
    assert (found.text[:2], found.text[-5:]) == ("^.", "why? ")
    assert found.ids == prompts.encode(Words(), found.text)


def test_short_prompts_are_taken_as_they_are(tmp_path: Path) -> None:
    """Long ones only where there is no short one, and of those the shorter ones first, whole where they may be."""
    whole = ["a" * 500, "b" * 300]

    assert [prompt.text for prompt in chosen(tmp_path, *whole, "c" * 30_000, "one? ")] == ["^one? "]
    assert [prompt.text for prompt in chosen(tmp_path, *whole, "c" * 30_000)][:2] == ["^" + "b" * 300, "^" + "a" * 500]
