"""What `prepare` reads, prints and refuses, before a stage may start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from payload_box import TAG, Box, dpo_rows, sft_rows, write_rows

from daemon.domain.estimate import steps_of
from daemon.domain.spec import Training
from remote_payload import contract, tokens
from remote_payload.contract import Exit, Integration, Prepared, StageTraining
from remote_payload.prepare import steps
from remote_payload.rows import read_dpo, read_sft

MakeBox = Callable[..., Box]

UP = [{"role": "user", "content": "up?"}]
ROSE = {"role": "assistant", "content": "It rose."}
RATE = {"type": "function", "function": {"name": "rate"}}

BAD_SFT = [
    ("{broken", "not JSON"),
    ("[]", "not a JSON object"),
    ({"question": "?"}, "has none of messages, prompt, text (has question)"),
    ({"text": " "}, "text is empty"),
    ({"prompt": "one?"}, "completion is missing"),
    (
        {"prompt": "one?", "completion": [{"role": "assistant", "content": "two"}]},
        "must all be strings or all be lists",
    ),
    ({"messages": []}, "messages is not a list of messages"),
    ({"messages": [{"role": "robot", "content": "beep"}]}, "messages[0] has no role of assistant, system, tool, user"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content is not text"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "messages[0].content is empty"),
    ({"text": "one", "tools": ["rate"]}, "tools is not a list of objects"),
    ({"messages": [{"role": "user", "content": "one?"}]}, "messages: the last message is not the assistant's"),
    ({"prompt": UP, "completion": [*UP, *UP]}, "completion: the last message is not the assistant's"),
    ('{"text": NaN}', "NaN is not JSON"),
]
BAD_DPO = [
    ({"prompt": "up?", "chosen": "yes"}, "rejected is missing"),
    ({"prompt": "up?", "chosen": "yes", "rejected": "yes"}, "chosen and rejected are equal"),
    ({"prompt": UP, "chosen": [ROSE], "rejected": [ROSE, *UP]}, "rejected: the last message is not the assistant's"),
]


@pytest.mark.parametrize(("row", "message"), BAD_SFT)
def test_bad_sft_row(make_box: MakeBox, row: Any, message: str) -> None:
    """An unsound row is named by file and line, and the sound ones around it are still counted."""
    box = make_box(rows=[*sft_rows(2), row, *sft_rows(1)])
    assert box.job.sft_data

    table = read_sft(box.layout, box.job.sft_data)

    assert len(table.rows) == 3
    assert str(table.problems[0]).startswith(f"{box.job.sft_data.path}:3: ")
    assert message in table.problems[0].message


@pytest.mark.parametrize(("row", "message"), BAD_DPO)
def test_bad_dpo_row(make_box: MakeBox, row: Any, message: str) -> None:
    """A pair that cannot teach a preference is refused."""
    box = make_box(pairs=[row])
    assert box.job.dpo_data

    assert message in read_dpo(box.layout, box.job.dpo_data).problems[0].message


def test_line_separator_inside_a_row_ends_no_line(make_box: MakeBox) -> None:
    """Only a line feed ends a row: text may hold the other characters that count as line ends elsewhere."""
    box = make_box(rows=['{"text": "one\u2028two\u0085three"}'])
    assert box.job.sft_data

    assert len(read_sft(box.layout, box.job.sft_data).rows) == 1


@pytest.mark.parametrize(
    ("rows", "training", "expected"),
    [
        (15300, StageTraining(epochs=1), 479),
        (15300, StageTraining(epochs=2), 958),
        (33, StageTraining(epochs=10), 20),
        (100, StageTraining(epochs=1.5), 6),
        (32, StageTraining(epochs=0.5), 1),
        (2550, StageTraining(epochs=1, max_steps=50), 50),
        (64, StageTraining(epochs=1, max_steps=50), 2),
    ],
)
def test_steps_are_derived(rows: int, training: StageTraining, expected: int) -> None:
    """Steps follow from rows, epochs and the global batch, and a cap only ever lowers them. So does the estimate."""
    assert steps(rows, training, batch=32) == expected
    planned = Training(data="x", epochs=float(training.epochs), max_steps=training.max_steps)
    assert steps_of(planned, rows, batch_size=32) == expected


TRAINER_STEPS = """
import torch, transformers
from datasets import Dataset

class Loader(transformers.Trainer):
    def __init__(self, rows, micro, accumulated, epochs):
        arguments = transformers.TrainingArguments(
            output_dir="out", use_cpu=True, report_to=[], per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulated, num_train_epochs=epochs)
        data = Dataset.from_dict({"input": list(range(rows))})
        super().__init__(torch.nn.Linear(1, 1), arguments, train_dataset=data)

for rows in (31, 32, 33, 100):
    for micro, accumulated in ((32, 1), (8, 4), (1, 32)):
        for epochs in (0.5, 1, 1.5, 10):
            trainer = Loader(rows, micro, accumulated, epochs)
            found = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
            print("steps", rows, epochs, found[-1])
"""


def test_epochs_are_those_the_trainer_counts(make_box: MakeBox) -> None:
    """Asked for epochs itself, the library's trainer makes as many steps, packed or accumulated."""
    printed = make_box().evaluate(TRAINER_STEPS).splitlines()

    told = [line.split()[1:] for line in printed if line.startswith("steps ")]

    assert len(told) == 48
    for rows, epochs, found in told:
        assert steps(int(rows), StageTraining(epochs=float(epochs)), batch=32) == int(found), (rows, epochs)


def test_says_what_it_read(make_box: MakeBox) -> None:
    """The integration line stands alone on its line in stdout and log; the counts are of the tokens to train."""
    long = {"prompt": "one? ", "completion": "two " * 400}
    wholly_cut = {"prompt": "why? " * 400, "completion": "so"}
    box = make_box(rows=[*sft_rows(98), long, wholly_cut], pairs=dpo_rows(8))

    done = box.call("prepare")

    line = f"{TAG}: 100 SFT + 8 DPO samples from YOUR data"
    assert done.returncode == Exit.OK, done.stderr
    assert line in done.stdout.splitlines()
    assert line in box.layout.log.read_text().splitlines()
    prepared = contract.load(Prepared, done.stdout.splitlines()[-1])
    assert prepared == box.layout.read_prepared()
    assert prepared.kept == {"SFT": 99, "DPO": 8}
    assert prepared.truncated == {"SFT": 1, "DPO": 0}
    assert prepared.steps == {"SFT": 50, "DPO": 4}


@pytest.mark.parametrize(
    ("integration", "problem"),
    [
        (Integration(TAG, 25, 16), "24 SFT rows read, 25 announced"),
        (Integration(TAG, 24, 15), "16 DPO rows read, 15 announced"),
        (Integration(" ", 24, 16), "no integration tag"),
    ],
)
def test_wrong_counts_or_tag(make_box: MakeBox, integration: Integration, problem: str) -> None:
    """What was announced and what was read must agree, else exit 21; the line still tells what was read."""
    box = make_box(integration=integration)

    done = box.call("prepare")

    assert done.returncode == Exit.INTEGRATION
    assert f"{integration.tag}: 24 SFT + 16 DPO samples from YOUR data" in done.stdout.splitlines()
    assert any(problem in found for found in box.layout.read_prepared().problems)


def test_bad_row_is_bad_data(make_box: MakeBox) -> None:
    """A bad row ends in exit 20 with file:line, although the counts differ as well."""
    box = make_box(rows=[*sft_rows(3), "{broken"])
    assert box.job.sft_data

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_DATA
    assert box.layout.read_prepared().problems[0].startswith(f"{box.job.sft_data.path}:4: not JSON")


def test_changed_file_is_bad_data(make_box: MakeBox) -> None:
    """Data that is not what the workstation hashed is refused, though every row is sound."""
    box = make_box()
    assert box.job.sft_data
    box.layout.file(box.job.sft_data.path).write_text("".join(f"{json.dumps(row)}\n" for row in reversed(sft_rows(24))))

    assert box.call("prepare").returncode == Exit.BAD_DATA


def test_no_training_without_prepare(make_box: MakeBox) -> None:
    """A stage refuses to start where prepare found problems."""
    box = make_box(integration=Integration(TAG, 1, 1))
    box.call("prepare")

    refused = box.call("sft")

    assert refused.returncode == Exit.BAD_DATA
    assert "prepare has not passed" in refused.stderr


def test_template_without_end_is_refused(make_box: MakeBox, tmp_path: Path) -> None:
    """Rows that do not end in an end token would train a model that never stops."""
    box = make_box()
    own_model(box, tmp_path, template=("{{ eos_token }}", ""))

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_DATA
    assert any("the model would not stop" in problem for problem in box.layout.read_prepared().problems)


def test_doubled_beginning_is_refused(make_box: MakeBox) -> None:
    """Text that already holds the beginning-of-text token would get it twice."""
    box = make_box(rows=[{"text": "<s>On day one the rate rose."}] * 4)

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_DATA
    assert any("4 of 4 SFT rows hold <s> more than once" in found for found in box.layout.read_prepared().problems)


def test_tokenizer_unlike_its_file_is_refused(make_box: MakeBox, tmp_path: Path) -> None:
    """A library that tokenizes otherwise than the model's own tokenizer.json is caught before anything is trained."""
    box = make_box()
    own_model(box, tmp_path)
    code = (
        "from pathlib import Path; from transformers import AutoTokenizer;"
        "from remote_payload.tokenizer_checks import parity_problems;"
        "folder = Path('model'); tokenizer = AutoTokenizer.from_pretrained(folder);"
        "file = folder / 'tokenizer.json'; print(parity_problems(file, tokenizer, ['the rate rose']));"
        "file.write_text(file.read_text().replace('\"add_prefix_space\": false', '\"add_prefix_space\": true')"
        ".replace('\"add_prefix_space\":false', '\"add_prefix_space\":true'));"
        "print(parity_problems(file, tokenizer, ['the rate rose']))"
    )

    before, after = box.evaluate(code).splitlines()

    assert before == "[]"
    assert "unlike the model's tokenizer.json" in after


def test_tokens_that_read_otherwise_are_refused(make_box: MakeBox) -> None:
    """Where the tokenizer works on bytes, ids that decode to another text than they were made of are caught."""
    box = make_box()
    code = (
        "from pathlib import Path; from transformers import AutoTokenizer;"
        "from remote_payload.tokenizer_checks import parity_problems;"
        "tokenizer = AutoTokenizer.from_pretrained('model');"
        "right = tokenizer.decode; tokenizer.decode = lambda ids: right(ids).replace(' ', '');"
        "print(parity_problems(Path('model/tokenizer.json'), tokenizer, ['the rate rose']))"
    )

    assert "the tokens of 'the rate rose' read 'theraterose'" in box.evaluate(code)


# Special tokens by id, what the tokenizer pads with itself -> what it shall pad with; 1 ends a text, 0 begins it.
PADDING = [
    ({0: "<s>", 1: "</s>", 2: "<pad>"}, 2, "<pad>"),
    ({0: "<s>", 1: "</s>", 2: "<|fim_pad|>"}, 1, "<|fim_pad|>"),
    ({0: "<s>", 1: "</s>", 2: "<|other|>"}, None, "</s>"),
]


def test_padding_takes_a_token_that_is_free(make_box: MakeBox) -> None:
    """Padding is the tokenizer's own, else a special token it has; the end of a text is the last resort."""
    code = f"""
from types import SimpleNamespace
from remote_payload.tokenizer import padding
for special, own, _ in {PADDING!r}:
    added = {{i: SimpleNamespace(content=text, special=True) for i, text in special.items()}}
    print(padding(SimpleNamespace(
        pad_token=special.get(own), pad_token_id=own, bos_token_id=0, eos_token="</s>", unk_token=None,
        added_tokens_decoder=added), {{1}}))
"""

    assert make_box().evaluate(code).split() == [wanted for _, _, wanted in PADDING]


def test_max_length_is_derived_from_the_rows(make_box: MakeBox) -> None:
    """Left to prepare, max_length fits the longest rows, and stage scripts read it from prepared.json."""
    box = make_box(max_length=None)

    box.prepare()

    prepared = box.layout.read_prepared()
    assert prepared.max_length == 64
    assert 32 < prepared.lengths["SFT"]["max"] <= 64
    assert box.layout.read_settled().max_length == 64


def test_a_cut_that_costs_too_much_is_refused(make_box: MakeBox) -> None:
    """Rows that would lose their end are not trained on in silence."""
    box = make_box(rows=[*sft_rows(24), {"prompt": "one? ", "completion": "two " * 400}])

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_DATA
    assert "1 of 25 SFT rows are longer than 128 tokens and would lose their end" in done.stdout


REASONED = [
    {"role": "user", "content": "Will the rate rise?"},
    {"role": "assistant", "content": "<think>\nIt rose before.\n</think>\n\nYes."},
]
DELETING = (
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|' + message['role'] + '|>' + content }}"
)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "why? " * 400, "completion": "so"}, "no evaluation row has an answer within 128 tokens"),
        (
            {"messages": [*UP, ROSE], "tools": [RATE]},
            "evaluation row 1: the chat template leaves out a part of the tool",
        ),
    ],
)
def test_evaluation_rows_are_judged_before_the_training(make_box: MakeBox, row: Any, problem: str) -> None:
    """What could not be scored in the end is refused now, under its own name."""
    box = make_box()
    box.set(eval_data=write_rows(box.layout.root, [row]))

    done = box.call("prepare")

    assert done.returncode == Exit.BAD_DATA
    assert problem in done.stdout


def test_reasoning_is_trained_although_the_template_deletes_it(make_box: MakeBox, tmp_path: Path) -> None:
    """Training keeps the reasoning that the shipped template drops, and the shipped template stays as it is."""
    box = make_box(rows=[{"messages": REASONED}] * 4, max_length=256)
    own_model(box, tmp_path, template=("{{ '<|' + message['role'] + '|>' + message['content'] }}", DELETING))
    shipped = (box.layout.model / "chat_template.jinja").read_bytes()

    trained = json.loads(box.evaluate(TRAINED))

    assert trained == ["<think>\nIt rose before.\n</think>\n\nYes.</s>"]
    assert (box.layout.model / "chat_template.jinja").read_bytes() == shipped


def test_unreasoned_answers_need_a_choice(make_box: MakeBox, tmp_path: Path) -> None:
    """Where the template opens <think> and the data never does, the person must say what is wanted."""
    box = make_box(max_length=256)
    own_model(box, tmp_path, template=("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\\n' }}"))

    refused = box.call("prepare")
    box.set(reasoning="empty")
    passed = box.call("prepare")

    assert refused.returncode == Exit.BAD_DATA
    assert "0 of 56 answers hold <think> reasoning" in refused.stdout
    assert passed.returncode == Exit.OK, passed.stdout


def test_every_assistant_turn_is_trained(make_box: MakeBox) -> None:
    """Of a conversation of several turns each answer with its end token is learned, and no question is."""
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    box = make_box(rows=[{"messages": turns}])

    assert json.loads(box.evaluate(TRAINED)) == ["assistant 0</s>", "assistant 1</s>"]


# Prints what the first SFT row trains, as text, one piece for every stretch of labels.
TRAINED = """
import itertools, json
from pathlib import Path
from remote_payload import rows, tokens
from remote_payload.layout import Layout
from remote_payload.tokenizer import load_tokenizer
layout = Layout(Path())
job = layout.read_settled()
tokenizer = load_tokenizer(layout)
sample = tokens.samples(tokenizer, rows.read_sft(layout, job.sft_data).rows, job)[0]
stretches = itertools.groupby(sample.labels, key=lambda label: label != tokens.IGNORED)
print(json.dumps([tokenizer.decode(list(ids)) for trained, ids in stretches if trained]))
"""


def own_model(box: Box, tmp_path: Path, template: tuple[str, str] = ("", "")) -> None:
    """Give the box its own copy of the tiny model, with one piece of its chat template replaced."""
    copy = tmp_path / "own-model"
    copy.mkdir()
    for file in box.layout.model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    box.layout.model.unlink()
    box.layout.model.symlink_to(copy)
    text = (copy / "chat_template.jinja").read_text()
    assert template[0] in text
    (copy / "chat_template.jinja").write_text(text.replace(*template))


@pytest.mark.parametrize("words", range(1, 12))
def test_an_answer_of_one_token_is_learned_before_an_end_that_the_tokenizer_writes(words: int) -> None:
    """Such an end has no place in the text, (0, 0): a search among places must not end up behind it."""

    class Ending:
        """A word a token, its number; 0 begins and 99 ends a text."""

        eos_token_id = 99

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[object]]:
            places = [[(0, 0), *((i, i + 1) for i in range(len(text))), (0, 0)] for text in texts]
            return {"input_ids": [[0, *range(1, len(text) + 1), 99] for text in texts], "offset_mapping": [*places]}

    (sample,) = tokens.whole_samples(Ending(), [{"prompt": "p" * words, "completion": "c"}], "keep")

    assert sample.labels[-2:] == [words + 1, 99]
    assert set(sample.labels[:-2]) == {tokens.IGNORED}
