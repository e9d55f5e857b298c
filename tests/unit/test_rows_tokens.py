"""Counting tokens on the workstation, with the sandbox's own small model: its tokenizer.json and its template."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from daemon.errors import SpecError
from daemon.rows import tokens
from daemon.rows.canonical import read
from daemon.rows.shapes import BadRow
from daemon.rows.tokenizer import Tokenizer, folder_of
from daemon.rows.tokens import Counter

NANO = Path(tokens.__file__).parents[1] / "sandbox/models/nano"
USER = {"role": "user", "content": "Which way?"}
ROSE = {"role": "assistant", "content": "The euro rose."}
FELL = {"role": "assistant", "content": "The euro fell, and it fell far."}
CHAT = "<|begin|><|im_start|>user\nWhich way?<|im_end|>\n<|im_start|>assistant\nThe euro rose.<|im_end|>"


@pytest.fixture(scope="module")
def counter() -> Counter:
    return Counter(NANO)


def model(folder: Path, template: str) -> Path:
    """A copy of the small model with another template."""
    shutil.copytree(NANO, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ROSE]},
        {"prompt": [USER], "completion": [ROSE]},
        {"prompt": [USER], "chosen": [ROSE], "rejected": [FELL]},
    ],
)
def test_a_conversation_is_shown_as_the_template_says_it(counter, row):
    """The special tokens are the template's, once each; of a pair the chosen half is shown."""
    assert counter.rendered(row) == CHAT


def test_what_is_counted(counter):
    """Of a pair the longer half; of plain text, what the tokenizer adds and the token that ends it."""
    rose, fell = (counter.length({"prompt": [USER], "completion": [answer]}) for answer in (ROSE, FELL))
    plain = counter.length({"text": "The euro rose."})

    assert plain == Tokenizer(NANO).count("The euro rose.", special=True) + 1
    assert rose < fell == counter.length({"prompt": [USER], "chosen": [ROSE], "rejected": [FELL]})
    assert counter.length({"prompt": "The euro", "completion": " rose."}) == plain
    assert counter.length({"messages": [USER, ROSE], "tools": None}) == rose


def test_an_empty_block_of_reasoning_counts(counter):
    """`reasoning: empty` makes every answer longer."""
    row = {"messages": [USER, ROSE]}

    assert Counter(NANO, "empty").length(row) > counter.length(row)


def test_a_template_that_drops_reasoning_is_mended_before_it_counts(tmp_path):
    """As on the box: the statement that deletes everything up to </think> is taken out."""
    dropping = (
        "{% for message in messages %}{% set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "[{{ message['role'] }}]{{ content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    thinking = {"role": "assistant", "content": "<think>\nup\n</think>\n\nThe euro rose."}

    counter = Counter(model(tmp_path / "m", dropping))

    assert counter.rendered({"messages": [USER, thinking]}).endswith(
        "[assistant]<think>\nup\n</think>\n\nThe euro rose."
    )


def test_what_only_trls_variant_keeps_is_left_to_the_machine(tmp_path):
    """A template that drops the reasoning of earlier turns may have a variant in TRL, which is not here: such a row is
    counted by its words, as one without reasoning is by the template, which may still refuse it."""
    forgetful = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns, please') }}{% endif %}"
        "{% for message in messages %}[{{ message['role'] }}]"
        "{{ message['content'] if loop.last else message['content'].split('</think>')|last }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    counter = Counter(model(tmp_path / "m", forgetful))
    thinking = {"role": "assistant", "content": "<think>\nup\n</think>\n\nThe euro rose."}
    talk = [USER, thinking, USER, thinking]

    assert counter.length({"messages": talk}) > counter.length({"messages": [USER, ROSE]})
    assert "up" in counter.rendered({"messages": talk})
    with pytest.raises(BadRow, match="no system turns"):
        counter.length({"messages": [{"role": "system", "content": "Be kind"}, USER, ROSE]})


def test_a_row_the_template_cannot_say_is_refused_by_its_line(tmp_path):
    """The template's own words are told, with file and line."""
    folder = model(
        tmp_path / "m",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns, please') }}{% endif %}"
        "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    )
    path = tmp_path / "sft.jsonl"
    rows = [{"messages": [USER, ROSE]}, {"messages": [{"role": "system", "content": "Be kind"}, USER, ROSE]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    found = read(path, "sft", count=Counter(folder).length)

    assert found.problems == (f"{path}:2: the chat template cannot say it: no system turns, please",)
    assert len(found.tokens or ()) == 1


def test_a_template_cannot_reach_out(tmp_path):
    """It runs in a sandbox: what is no part of the row is refused."""
    counter = Counter(model(tmp_path / "m", "{{ ''.__class__.__mro__ }}"))

    with pytest.raises(BadRow, match="unsafe"):
        counter.length({"messages": [USER, ROSE]})


def test_max_length_is_derived_as_on_the_box(counter):
    """What 99.5 % of each stage's rows need, rounded up to 64."""
    assert counter.fitting([[10] * 99, [70] * 99, []]) == 128
    assert counter.fitting([[]]) is None


@pytest.mark.parametrize("missing", ["tokenizers", "jinja2"])
def test_without_the_extra_the_command_is_named(monkeypatch, missing):
    """Tokens are an extra: what to type is part of the error."""
    for module in [name for name in sys.modules if name.startswith(("remote_payload.t", missing))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(SpecError, match=f"needs {missing}") as refusal:
        Counter(NANO)

    assert refusal.value.hint == "pip install 'homeport[data]'"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    """The file that is missing is named."""
    with pytest.raises(SpecError, match=r"tokenizer\.json:1: is no tokenizer"):
        Counter(tmp_path)


def test_where_a_tokenizer_is_looked_for(tmp_path, monkeypatch):
    """The model's own folder, what an earlier submit fetched, the hub's cache; else nowhere."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    places = {
        "here": tmp_path / "here",
        "org/fetched": tmp_path / "base/org--fetched@abc",
        "org/cached@main": tmp_path / "hf/hub/models--org--cached/snapshots/abc",
    }
    for place in places.values():
        place.mkdir(parents=True)
        (place / "tokenizer.json").touch()

    for name, place in places.items():
        assert folder_of(name, tmp_path, tmp_path / "base") == place
    assert folder_of("org/other", tmp_path, tmp_path / "base") is None


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['content'] + 1 }}", "{{ 1 / 0 }}", "{{ '{a}'.format() }}", "{{ strftime_now(5) }}"],
)
def test_a_template_that_fails_is_a_bad_row(tmp_path, template):
    """Whatever its code runs into."""
    with pytest.raises(BadRow, match="the chat template cannot say it"):
        Counter(model(tmp_path / "model", template)).length({"messages": [USER, ROSE]})


@pytest.mark.parametrize("text", ["[]", '{"max_position_embeddings": null}', '{"max_position_embeddings": "x"}'])
def test_a_model_that_does_not_say_how_long_it_reads(tmp_path, counter, text):
    folder = model(tmp_path / "model", counter._tokenizer.chat_template)
    (folder / "config.json").write_text(text)

    assert Counter(folder).fitting([[100]]) == counter.fitting([[100]])


@pytest.mark.parametrize(
    ("file", "content"), [("chat_template.jinja", b"\xff"), ("config.json", b"{"), ("tokenizer_config.json", b"{")]
)
def test_a_model_folder_that_cannot_be_read_is_named(tmp_path, file, content):
    folder = model(tmp_path / "model", "{{ messages }}")
    (folder / file).write_bytes(content)

    with pytest.raises(SpecError, match=file):
        Counter(folder).fitting([[100]])


def test_a_strange_tokenizer_config_is_no_error_of_ours(tmp_path):
    """Half a description of a token, and templates in a list that names none."""
    folder = model(tmp_path / "model", "")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"x": 1}, "chat_template": [5, {"name": "default"}]}')

    assert Tokenizer(folder).chat_template is None
