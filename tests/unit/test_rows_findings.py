"""What `data-check` says about sound rows: one case a rule, and a pair of files that it says nothing about."""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.rows.canonical import RowFile, read
from daemon.rows.findings import PAIR_RULES, RULES, common_prompts, findings
from daemon.rows.shapes import Kind
from daemon.rows.survey import quantile

DAY = {"sft": "2024-01-0{}", "dpo": "2024-01-0{}", "eval": "2024-02-0{}T00:00:00Z"}


def rows(kind: Kind) -> list[dict[str, str]]:
    answers = {"chosen": "It rose.", "rejected": "It fell."} if kind == "dpo" else {"completion": "It rose."}
    return [{"prompt": f"{kind} {i}", "date": DAY[kind].format(i + 1)} | answers for i in range(3)]


def checked(folder: Path, kind: Kind, lines: list[dict[str, str]]) -> RowFile:
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return read(path, kind)


def plain(folder: Path, **changed: list[dict[str, str]]) -> list[RowFile]:
    kinds: tuple[Kind, ...] = ("sft", "dpo", "eval")
    return [checked(folder, kind, changed.get(kind) or rows(kind)) for kind in kinds]


def test_nothing_is_said_about_ordinary_files(tmp_path):
    """Different rows, equal lengths, evaluation later than training."""
    assert findings(plain(tmp_path)) == []


CASES = {
    "duplicates": ("sft", [*rows("sft"), rows("sft")[1]], "sft.jsonl:4: 1 of 4 rows are an earlier row once more"),
    "alike": ("sft", [*rows("sft"), rows("sft")[1] | {"prompt": " SFT  1 "}], "1 rows differ from an earlier one only"),
    "marked": ("sft", [*rows("sft"), {"prompt": "<|im_start|>user", "completion": "x"}], "sft.jsonl:4: 1 rows hold"),
    "length bias": (
        "dpo",
        [row | {"chosen": "It rose, and then it rose some more."} for row in rows("dpo")],
        "chosen answers have 36 characters on average, rejected 8",
    ),
    "leak": ("eval", [rows("eval")[0], rows("sft")[2] | {"date": ""}], "eval.jsonl:2: 1 of 2 evaluation rows ask what"),
    "not later": (
        "eval",
        [rows("eval")[0] | {"date": "2024-01-03"}, rows("eval")[1]],
        "1 of 2 dated evaluation rows are not later",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_sees_its_case(tmp_path, name):
    """One thing is wrong, and it is said where and how much, with what to do."""
    kind, lines, text = CASES[name]

    found = findings(plain(tmp_path, **{kind: lines}))

    assert found
    assert all(text in each.text and each.mend for each in found)


def test_rows_beyond_max_length_are_refused_from_a_share_on(tmp_path):
    """One pair of a hundred may lose its end, two may not; of answers two may."""
    lengths = array("Q", [10] * 6 + [80] * 2 + [10] * 94)
    files = [replace(file, tokens=lengths) for file in plain(tmp_path, sft=rows("sft") * 34, dpo=rows("dpo") * 34)[:2]]

    (said,) = [each for each in findings(files, 64) if "longer than" in each.text]

    assert said.level == "REFUSED"
    assert said.text.endswith(
        "dpo.jsonl:7: 2 of 102 rows are longer than max_length 64 and would lose their end, more than 1%"
    )


def test_a_question_is_the_same_whatever_its_answer(tmp_path):
    """Evaluation that asks what training asks is a leak, also in another shape and with another answer."""
    asked, up, down = (
        {"role": r, "content": c} for r, c in (("user", "Up?"), ("assistant", "Yes"), ("assistant", "No"))
    )
    trained = checked(tmp_path, "sft", [{"messages": [asked, up]}])
    held_out = checked(tmp_path, "eval", [{"prompt": [asked], "completion": [down]}])

    assert common_prompts(trained, held_out) == (1, 1)


def test_lengths_by_share():
    """The value that so many of all do not exceed."""
    assert [quantile([3, 1, 2, 4], share) for share in (0.0, 0.5, 0.995)] == [1, 3, 4]
    assert quantile([], 0.5) == 0


def test_every_rule_has_its_case():
    """A rule that is added to a table is tested above."""
    assert {rule.name for rule in (*RULES, *PAIR_RULES)} == CASES.keys()


@pytest.mark.parametrize(
    ("date", "training", "early"),
    [
        (1_706_745_600, 1_706_745_599, 0),  # unix seconds
        (1_706_745_600_000, 1_706_745_601, 1),  # milliseconds
        ("2024-02-01T00:00:00+01:00", "2024-01-31T23:00:00Z", 1),
        ("2024-02-01 00:00", "2024-01-31", 0),
        ("first of May", "2024-01-31", 0),  # no date, so nothing is known
    ],
)
def test_dates_are_compared_whatever_their_form(tmp_path, date, training, early):
    """Seconds, milliseconds, ISO with and without a zone."""
    files = [
        checked(tmp_path, "sft", [{"text": "a", "timestamp": training}]),
        checked(tmp_path, "eval", [{"text": "b", "timestamp": date}]),
    ]

    assert len(findings(files)) == early
