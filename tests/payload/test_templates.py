"""What a row trains under the chat templates that real models ship, word for word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from payload_box import build_box, dpo_rows, sft_rows

from remote_payload import reasoning

UP = {"role": "user", "content": "up?"}
WHY = {"role": "user", "content": "why?"}
YES = {"role": "assistant", "content": "yes"}
SO = {"role": "assistant", "content": "so"}
THOUGHT = {"role": "assistant", "content": "<think>\nit rose\n</think>\n\nyes"}
AGAIN = {"role": "assistant", "content": "<think>\nit fell\n</think>\n\nso"}
RULES = {"role": "system", "content": "Be brief."}
RATE = {"type": "function", "function": {"name": "get_rate", "parameters": {"type": "object", "properties": {}}}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "get_rate", "arguments": {}}}],
}
TOLD = {"role": "tool", "name": "get_rate", "content": "1.08"}

PLAIN, REASONED = {"messages": [UP, YES]}, {"messages": [UP, THOUGHT]}
TALK, REASONED_TALK = {"messages": [UP, YES, WHY, SO]}, {"messages": [UP, THOUGHT, WHY, AGAIN]}
RULED = {"messages": [RULES, UP, YES]}
HISTORY = {"prompt": [UP, THOUGHT, WHY], "completion": [AGAIN]}
CALLED = {"messages": [UP, CALL, TOLD, YES], "tools": [RATE]}
PAIR = {"prompt": [UP], "chosen": [THOUGHT], "rejected": [AGAIN]}
PLAIN_PAIR = {"prompt": [UP], "chosen": [YES], "rejected": [SO]}
SAME_PAIR = {"prompt": [UP], "chosen": [YES], "rejected": [YES | {"content": "yes\n"}]}

R1, V3, END = "deepseek_r1_distill", "deepseekv3", "<｜end▁of▁sentence｜>"
EMPTY = "<think>\n\n</think>\n\n"
TURNS = ["<think>\nit rose\n</think>\n\nyes<|im_end|>", "<think>\nit fell\n</think>\n\nso<|im_end|>"]
CALLING = '<tool_call>\n{"name": "get_rate", "arguments": {}}\n</tool_call><|im_end|>'

# Template, reasoning, rows -> the stretches of text that are trained, row by row; a text: the refusal holds it.
TABLE: list[tuple[str | None, str, list[dict[str, Any]], Any]] = [
    # R1 and V3 delete reasoning and begin every answer with "<think>\n", which is therefore read, not trained.
    (R1, "auto", [REASONED], [[f"it rose\n</think>\n\nyes{END}"]]),
    (R1, "keep", [REASONED], [[f"it rose\n</think>\n\nyes{END}"]]),
    (V3, "auto", [REASONED], [[f"it rose\n</think>\n\nyes{END}"]]),
    (R1, "auto", [REASONED_TALK], [[f"it rose\n</think>\n\nyes{END}", f"it fell\n</think>\n\nso{END}"]]),
    (R1, "auto", [HISTORY], [[f"it fell\n</think>\n\nso{END}"]]),
    (R1, "empty", [PLAIN], [[f"\n</think>\n\nyes{END}"]]),
    (R1, "empty", [REASONED], [[f"it rose\n</think>\n\nyes{END}"]]),
    (R1, "none", [PLAIN], [[f"yes{END}"]]),
    (R1, "auto", [RULED | {"messages": [RULES, UP, THOUGHT]}], [[f"it rose\n</think>\n\nyes{END}"]]),
    (R1, "auto", [PLAIN], "0 of 1 answers hold <think> reasoning, and the chat template begins every answer with"),
    (R1, "auto", [PLAIN, REASONED], "1 of 2 answers hold <think> reasoning"),
    (R1, "keep", [PLAIN], "reasoning: keep, but 0 of 1 answers"),
    (R1, "none", [REASONED], "reasoning: none, but 1 of 1 answers"),
    (R1, "keep", [{"messages": [UP, SO | {"content": "it rose</think>yes"}]}], "hold only one of <think> and </think>"),
    (R1, "none", [CALLED], "leaves out a part of the tool call 'get_rate'"),
    # A template that begins no answer with <think> trains what is written.
    ("qwen2_5", "auto", [PLAIN], [["yes<|im_end|>"]]),
    ("qwen2_5", "auto", [REASONED], [["<think>\nit rose\n</think>\n\nyes<|im_end|>"]]),
    ("qwen2_5", "auto", [PLAIN, REASONED], "1 of 2 answers hold <think> reasoning: say which"),
    ("qwen2_5", "empty", [PLAIN], [[f"{EMPTY}yes<|im_end|>"]]),
    ("qwen2_5", "auto", [TALK], [["yes<|im_end|>", "so<|im_end|>"]]),
    ("qwen2_5", "auto", [CALLED], [[CALLING, "yes<|im_end|>"]]),
    ("llama3", "auto", [RULED], [["yes<|eot_id|>"]]),
    ("phi3", "auto", [TALK], [["yes<|end|>", "so<|end|>\n</s>"]]),
    ("gemma3", "auto", [RULED], [["yes<end_of_turn>"]]),
    ("gemma", "auto", [RULED], "SFT row 1: the chat template cannot say it: System role not supported"),
    # Qwen3 itself writes an empty block where there is no reasoning, in the last turn alone: trained in every turn.
    ("qwen3", "auto", [PLAIN], [[f"{EMPTY}yes<|im_end|>"]]),
    ("qwen3", "auto", [TALK], [[f"{EMPTY}yes<|im_end|>", f"{EMPTY}so<|im_end|>"]]),
    ("qwen3", "auto", [REASONED_TALK], [TURNS]),
    (None, "auto", [PLAIN], "SFT row 1: the model has no chat template"),
    # A conversation whose earlier turns cannot be trained as they were said is refused, one answer a row is not.
    ("glm4moe", "auto", [REASONED_TALK], "row 1: the chat template renders an earlier turn differently"),
    ("glm4moe", "auto", [HISTORY], [["\n<think>it fell</think>\nso"]]),
    ("qwen3_5_nothink", "auto", [REASONED], "the model would learn what it is never asked for"),
]  # fmt: skip
# The same for pairs: what is trained after the prompt, chosen and rejected.
PAIRS: list[tuple[str, str, list[dict[str, Any]], Any]] = [
    (R1, "auto", [PAIR], [[f"it rose\n</think>\n\nyes{END}", f"it fell\n</think>\n\nso{END}"]]),
    (R1, "empty", [PLAIN_PAIR], [[f"\n</think>\n\nyes{END}", f"\n</think>\n\nso{END}"]]),
    (R1, "none", [PLAIN_PAIR], [[f"yes{END}", f"so{END}"]]),
    (R1, "auto", [PLAIN_PAIR], "0 of 2 answers hold <think> reasoning"),
    ("qwen3", "auto", [PAIR], [TURNS]),
    ("llama3", "auto", [SAME_PAIR], "DPO row 1: the chat template renders chosen and rejected alike"),
]  # fmt: skip
# Template, row, and what TRL's own trainer trains of it beyond what we do: a line end that nobody generates.
ASKED = {"prompt": [UP], "completion": [YES]}
TRL = [("llama3", ASKED, ""), ("qwen2_5", ASKED, "\n"), ("llama3", {"prompt": "up?", "completion": " yes"}, "")]
OPENING = [R1, V3, "nemotron_3_nano", "qwen3_5_think"]


@pytest.fixture(scope="module")
def found(box_python: Path, warm: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers to every row of both tables, from one process."""
    root = tmp_path_factory.mktemp("templates") / "box"
    box = build_box(root, box_python, warm, tiny_model, sft_rows(1), dpo_rows(1))
    cases = [[*row[:3], "sft"] for row in TABLE] + [[*row[:3], "dpo"] for row in PAIRS]
    (root / "cases.json").write_text(
        json.dumps({"cases": cases, "delivered": OPENING, "trl": [case[:2] for case in TRL]})
    )
    return dict(json.loads(box.evaluate(Path(__file__).with_name("template_side.py").read_text())))


@pytest.mark.parametrize("at", range(len(TABLE) + len(PAIRS)))
def test_trained_text(found: dict[str, Any], at: int) -> None:
    """Exactly what the table says is trained, its end-of-turn token included, or the row is refused and says why."""
    expected = (TABLE + PAIRS)[at][3]

    if isinstance(expected, str):
        assert expected in found["cases"][at]
    else:
        assert found["cases"][at] == expected


@pytest.mark.parametrize("name", OPENING)
def test_delivered_without_opening(found: dict[str, Any], name: str) -> None:
    """Under reasoning: none the delivered template asks for an answer without <think>, and is otherwise the shipped."""
    made = found["delivered"][name]

    assert made["none prompt"] == made["shipped prompt"].removesuffix("<think>\n")
    assert made["none prompt"] != made["shipped prompt"]
    assert made["none turn"] == made["shipped turn"]


def test_ids_and_labels_are_trls(found: dict[str, Any]) -> None:
    """Token for token what TRL's trainer makes of the row itself, the line end after the last turn apart."""
    assert found["beyond ours"] == [beyond for _, _, beyond in TRL]


def test_every_choice_is_explained() -> None:
    """A refusal for want of a choice tells all three."""
    with pytest.raises(reasoning.Unclear) as refusal:
        reasoning.settled("auto", True, ["yes"])

    assert all(f"reasoning: {choice}" in str(refusal.value) for choice in ("keep", "empty", "none"))
