"""What a machine is returned for: a table of verdicts over what the cards and nvidia-smi say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from payload_box import Box, begin_ranks

from remote_payload.contract import Exit, Stage

MakeBox = Callable[..., Box]

# What is asked of cards.py, in the box's python, and the verdict with a piece of the detail.
VERDICTS: list[tuple[str, bool, str]] = [
    ("rate_check('matmul rate', 'NVIDIA H100 80GB HBM3', 790.0)", True, "usually reaches 780"),
    ("rate_check('matmul rate', 'NVIDIA H100 80GB HBM3', 460.0)", False, "460 TFLOP/s"),
    ("rate_check('matmul rate', 'NVIDIA H100 PCIe', 460.0)", True, "usually reaches 600"),
    ("rate_check('matmul rate', 'Some other card', 1.0)", True, "not known"),
    ("memory_check(0, 79 << 30, 80 << 30)", True, "MiB are free"),
    ("memory_check(0, 50 << 30, 80 << 30)", False, "51200 of 81920 MiB"),
    ("ecc_check('0, 0\\n1, 0\\n')", True, "no uncorrected errors"),
    ("ecc_check('0, 0\\n1, 3\\n')", False, "cuda:1 has 3"),
    ("ecc_check('0, [N/A]\\n')", True, "no uncorrected errors"),
    ("attention_check('cpu')", True, "1e-05 is rounding"),
]


def test_verdicts(make_box: MakeBox) -> None:
    """A card that is slow for its kind, in use, or has uncorrected errors fails; one that says nothing does not."""
    asked = ", ".join(f"cards.{call}" for call, _, _ in VERDICTS)
    code = f"import json\nfrom remote_payload import cards\nprint(json.dumps([[c.ok, c.detail] for c in [{asked}]]))"

    found: list[list[Any]] = json.loads(make_box().evaluate(code).splitlines()[-1])

    for (call, ok, detail), (judged, said) in zip(VERDICTS, found, strict=True):
        assert judged is ok and detail in said, (call, said)


# A host with a driver, whose cards torch cannot see.
BLIND = """
import json
from pathlib import Path
from remote_payload import cards
cards.DRIVER = Path("run")
first = next(cards.checks())
print(json.dumps([first.name, first.ok]))
"""


def test_a_driver_without_cards_fails(make_box: MakeBox) -> None:
    """Else a broken host would train on its CPU, as a machine without cards may."""
    assert json.loads(make_box().evaluate(BLIND)) == ["cards", False]


# A kernel that takes a packed row for one sequence.
MIXING = """
import json
from remote_payload import attention, cards
right = attention.one_by_one
def mixing(q, k, v, q_bounds, k_bounds, *rest):
    return right(q, k, v, [0, q_bounds[-1]], [0, k_bounds[-1]], *rest)
attention.one_by_one = mixing
print(json.dumps(cards.attention_check("cpu").ok))
"""


def test_attention_that_mixes_sequences_fails(make_box: MakeBox) -> None:
    """It would train, and no loss curve would tell."""
    assert json.loads(make_box().evaluate(MIXING)) is False


def test_the_ranks_add_up(make_box: MakeBox) -> None:
    """Two ranks exchange numbers, find the right sum, and the first says how fast."""
    box = make_box()

    assert [rank.wait() for rank in begin_ranks(box, Stage.SFT, 2, module="remote_payload.exchange")] == [Exit.OK] * 2

    assert json.loads((box.layout.root / "stdout").read_text())["gb_s"] > 0
