"""What the box says of its own GGUFs, and whether the reference it sends home can tell a wrong one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from nano_box import NanoBox

from daemon.sandbox import models
from remote_payload.contract import Exit, Manifest, Quality, Role, Stage, load


@pytest.fixture(scope="module")
def evaluated(box_python: Path, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> NanoBox:
    """A box whose GGUF stage is over but for the manifest."""
    box = NanoBox.make(tmp_path_factory.mktemp("evaluated") / "box", box_python, ["Q8_0", "Q4_K_M"], warm=warm)
    box.succeed("gguf")
    box.succeed("answers")
    box.succeed("evaluate")
    return box


def quality_of(box: NanoBox) -> dict[str, Quality]:
    scores = json.loads((box.layout.stage(Stage.GGUF) / "quality.json").read_text())
    return {score["quant"]: Quality(**score) for score in scores}


def reference_of(box: NanoBox) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *prompts = map(json.loads, (box.layout.out / "reference.jsonl").read_text().splitlines())
    return header, prompts


def test_a_sound_file_is_near_the_model_and_the_base_model_is_not(evaluated: NanoBox) -> None:
    """Both files score near zero, the finer one nearer, and the base model is far from both."""
    quality = quality_of(evaluated)

    assert quality["Q8_0"].kl_mean < 0.001
    assert quality["Q8_0"].kl_mean < quality["Q4_K_M"].kl_mean < 0.05
    assert quality["Q8_0"].base_kl_mean > 10 * quality["Q4_K_M"].kl_mean
    assert quality["Q8_0"].top1 > 0.95
    assert quality["Q8_0"].positions >= 96


def test_reference_is_whole_probability_distributions(evaluated: NanoBox) -> None:
    """Every position has 64 tokens and a rest that make one, of the merged model and of the base model."""
    header, prompts = reference_of(evaluated)

    assert header["prompts"] == len(prompts) >= 8
    assert header["vocab"] == 512
    for prompt in prompts:
        assert len(prompt["positions"]) == len(prompt["ids"]) - prompt["start"]
        for position in prompt["positions"]:
            for top, tail in (("top", "tail"), ("base_top", "base_tail")):
                assert len({token for token, _ in position[top]}) == 64
                mass = sum(math.exp(log) for _, log in position[top]) + math.exp(position[tail])
                assert mass == pytest.approx(1, abs=1e-4)


def test_the_greedy_answer_is_the_first_of_every_position(evaluated: NanoBox) -> None:
    """The answer that is scored is the merged model's own likeliest one."""
    _, prompts = reference_of(evaluated)

    for prompt in prompts:
        assert [position["top"][0][0] for position in prompt["positions"]] == prompt["ids"][prompt["start"] :]


@pytest.mark.parametrize("model", ["nano", pytest.param("smollm2", marks=pytest.mark.full)])
def test_answers_are_those_of_the_merged_and_of_the_base_model(evaluated: NanoBox, tmp_path: Path, model: str) -> None:
    """To the last bit, with one model in memory and nothing beside it: a card of 24 GB has no room for more of a 7B."""
    box = evaluated
    if model == "smollm2":
        models.build_smollm2(tmp_path / "model", evaluated.python)
        box = NanoBox.make(tmp_path / "box", evaluated.python, ["Q8_0"], tmp_path / "model", evaluated.warm)
        box.succeed("gguf")

    box.aside("answers")


def test_a_card_without_room_leaves_the_answers_to_the_cpu(evaluated: NanoBox, tmp_path: Path) -> None:
    """The file was made and paid for: it comes home with the same answers, instead of failing again and again."""
    box = evaluated.fork(tmp_path / "box")
    (box.layout.stage(Stage.GGUF) / "answers.npz").unlink()

    box.aside("short")

    assert reference_of(box) == reference_of(evaluated)


def test_another_machine_finds_the_same_score_from_the_file_alone(evaluated: NanoBox) -> None:
    """Scored with this test's llama.cpp from reference.jsonl, the Q8_0 diverges as much as the box said."""
    _, prompts = reference_of(evaluated)
    model = llama_cpp.Llama(
        str(evaluated.gguf("Q8_0")), n_ctx=512, logits_all=True, n_threads=1, verbose=False
    )  # fmt: skip
    divergences = []
    for prompt in prompts:
        model.reset()
        model.eval(prompt["ids"])
        logits = np.array(model.scores[prompt["start"] - 1 : len(prompt["ids"]) - 1], dtype=float)
        logs = (
            logits
            - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            - logits.max(1)[:, None]
        )
        for row, position in zip(logs, prompt["positions"], strict=True):
            tokens, ours = zip(*position["top"], strict=True)
            theirs = row[list(tokens)]
            rest = math.log(max(1 - np.exp(theirs).sum(), 1e-43))
            kl = sum(math.exp(p) * (p - q) for p, q in zip(ours, theirs, strict=True))
            divergences.append(kl + math.exp(position["tail"]) * (position["tail"] - rest))
    model.close()

    assert np.mean(divergences) == pytest.approx(quality_of(evaluated)["Q8_0"].kl_mean, abs=1e-4)


def test_a_file_with_one_zeroed_tensor_is_refused(evaluated: NanoBox, tmp_path: Path) -> None:
    """It has the right size and loads, but it no longer says what the model says: 61."""
    box = evaluated.fork(tmp_path / "box")
    box.aside("zero", str(box.gguf("Q8_0")), "blk.1.ffn_up.weight")

    done = box.call("evaluate")

    assert done.returncode == Exit.GGUF_GATE
    assert "Q8_0 diverges from the model" in done.stderr


def test_a_wrongly_declared_tokenizer_is_refused(evaluated: NanoBox, tmp_path: Path) -> None:
    """A declared pre-tokenizer is believed only if llama.cpp then finds the model's own tokens."""
    box = evaluated.fork(tmp_path / "box")
    box.edit(box.layout.model / "tokenizer_config.json", homeport_pre_tokenizer="llama-bpe")
    box.succeed("gguf")

    done = box.call("evaluate")

    assert done.returncode == Exit.GGUF_GATE
    assert "other tokens than the model" in done.stderr


def test_the_box_goes_home_complete(evaluated: NanoBox) -> None:
    """run/out has every role, the tokenizer byte for byte as shipped, and the manifest takes it all."""
    done = evaluated.call("manifest")
    assert done.returncode == Exit.OK, done.stderr

    manifest = load(Manifest, evaluated.layout.manifest.read_bytes())

    expected = {Role.GGUF, Role.ADAPTER, Role.TOKENIZER, Role.BASE, Role.REFERENCE, Role.METRICS, Role.REPORT}
    assert {file.role for file in manifest.files} == expected
    assert [score.quant for score in manifest.quality] == ["Q8_0", "Q4_K_M"]
    assert manifest.tools["merge"] == "stream-fp64"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shipped = (evaluated.layout.model / name).read_bytes()
        assert (evaluated.layout.out / "tokenizer" / name).read_bytes() == shipped
    result = json.loads(evaluated.layout.result(Stage.GGUF).read_text())
    assert sorted(result["outputs"]) == sorted(file.path for file in manifest.files)
