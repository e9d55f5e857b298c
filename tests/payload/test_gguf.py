"""The GGUF stage on the nano model: real adapters, llama.cpp's converter, llama_model_quantize."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nano_box import NanoBox

from daemon.artifacts import identity
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.gguf import read
from remote_payload.contract import Exit, Stage
from remote_payload.quants import QUANTS, data_bytes

NANO_SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (512, 256),
    "output.weight": (512, 256),
    "output_norm.weight": (256,),
} | {
    f"blk.{i}.{name}.weight": shape
    for i in range(2)
    for name, shape in {
        "attn_norm": (256,),
        "ffn_norm": (256,),
        "attn_q": (256, 256),
        "attn_k": (128, 256),
        "attn_v": (128, 256),
        "attn_output": (256, 256),
        "ffn_gate": (512, 256),
        "ffn_up": (512, 256),
        "ffn_down": (256, 512),
    }.items()
}


@pytest.fixture(scope="module")
def adapted(box_python: Path, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> NanoBox:
    """A box that has its adapter; tests fork it."""
    return NanoBox.make(tmp_path_factory.mktemp("adapted") / "box", box_python, ["Q8_0"], warm=warm)


@pytest.fixture(scope="module")
def r1(box_python: Path) -> str:
    """DeepSeek R1's chat template as shipped, which training replaces."""
    (template,) = box_python.parent.parent.glob(
        "lib/python*/site-packages/trl/chat_templates/deepseek_r1_distill.jinja"
    )
    return template.read_text()


@pytest.fixture(scope="module")
def converted(adapted: NanoBox, r1: str, tmp_path_factory: pytest.TempPathFactory) -> NanoBox:
    """A box with a GGUF of every kind."""
    box = adapted.fork(tmp_path_factory.mktemp("converted") / "box")
    (box.layout.model / "chat_template.jinja").write_text(r1)
    box.set(gguf=list(QUANTS))
    box.succeed("gguf")
    return box


def test_streamed_merge_equals_pefts(converted: NanoBox, tmp_path: Path) -> None:
    """The file made by merging tensor by tensor is, bit for bit, the one made from the model that PEFT merged."""
    converted.aside("peft-gguf", str(tmp_path / "peft.gguf"), "float64")

    assert converted.gguf("Q8_0").read_bytes() == (tmp_path / "peft.gguf").read_bytes()


def test_a_replaced_template_is_in_the_file_as_shipped(converted: NanoBox, r1: str) -> None:
    """What training put in the place of R1's template was never on disk: the file has the shipped one, to the byte."""
    assert read(converted.gguf("Q8_0")).metadata["tokenizer.chat_template"] == r1


def test_of_two_templates_the_file_has_the_one_that_was_trained_with(adapted: NanoBox, tmp_path: Path) -> None:
    """A tokenizer_config.json whose own template differs by a line's end: the workstation expects the .jinja's too."""
    box = adapted.fork(tmp_path / "box")
    shipped = (box.layout.model / "chat_template.jinja").read_text()
    box.edit(box.layout.model / "tokenizer_config.json", chat_template=shipped + "\n")

    box.succeed("gguf")

    file = read(box.gguf("Q8_0"))
    assert file.metadata["tokenizer.chat_template"] == shipped
    assert identity.check(file, BaseIdentity("nano", box.layout.model), "Q8_0").problem == ""


def test_every_file_is_a_common_header_and_the_predicted_tensors(converted: NanoBox) -> None:
    """What is left of each file beside its predicted tensors is the same header, so no kind is predicted wrongly."""
    sizes = {quant: converted.gguf(quant).stat().st_size for quant in QUANTS}

    headers = {size - data_bytes(QUANTS[quant], NANO_SHAPES) for quant, size in sizes.items()}

    assert len(headers) == 1
    assert 0 < headers.pop() < 32_768


def test_template_comes_home_without_opening(adapted: NanoBox, tmp_path: Path) -> None:
    """Under reasoning: none the GGUF asks for an answer without <think>, and the workstation expects just that."""
    box = adapted.fork(tmp_path / "box")
    template = box.layout.model / "chat_template.jinja"
    shipped = template.read_text()
    opening = "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    template.write_text(shipped + opening)
    box.set(reasoning="none")

    box.succeed("gguf")

    file = read(box.gguf("Q8_0"))
    kept, without = (BaseIdentity("nano", box.layout.model, without_opening=wanted) for wanted in (False, True))
    assert file.metadata["tokenizer.chat_template"] == shipped + opening.replace("<think>\\n", "")
    assert identity.check(file, without, "Q8_0").problem == ""
    assert "chat template is not the base model's" in identity.check(file, kept, "Q8_0").problem


def test_result_names_files_and_their_sizes(converted: NanoBox) -> None:
    """result.json lists the GGUFs relative to the root with their sizes, and only they are in run/out."""
    result = json.loads(converted.layout.result(Stage.GGUF).read_text())

    assert sorted(result["outputs"]) == sorted(f"run/out/forex-{quant}.gguf" for quant in QUANTS)
    assert sorted(path.name for path in converted.layout.out.iterdir()) == sorted(f"forex-{q}.gguf" for q in QUANTS)
    assert result["metrics"]["Q4_K_M_bytes"] == converted.gguf("Q4_K_M").stat().st_size


def test_a_second_start_writes_the_same_bytes(converted: NanoBox, tmp_path: Path) -> None:
    """Starting the stage again after it ended changes nothing about the file."""
    box = converted.fork(tmp_path / "box")
    box.set(gguf=["Q8_0", "Q4_K_M"])
    box.succeed("gguf")

    for quant in box.job.gguf:
        assert box.gguf(quant).read_bytes() == converted.gguf(quant).read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"), [("stray", "layers.7.mlp.up_proj.weight"), ("nan", "values that are not numbers")]
)
def test_an_adapter_that_does_not_fit_is_refused(adapted: NanoBox, tmp_path: Path, damage: str, message: str) -> None:
    """A target that the model lacks, and a value that is not a number, end the stage with 60 and no file."""
    box = adapted.fork(tmp_path / "box")
    box.aside("break", damage)

    done = box.call("gguf")

    assert done.returncode == Exit.MERGE_GATE
    assert message in done.stderr
    assert not list(box.layout.out.glob("*.gguf"))


def test_an_unusual_adapter_is_merged_by_peft(adapted: NanoBox, tmp_path: Path) -> None:
    """rsLoRA scales otherwise than plain LoRA, so PEFT merges it, and the tools of the manifest say so."""
    box = adapted.fork(tmp_path / "box")
    box.edit(box.adapter_config, use_rslora=True)
    box.succeed("gguf")
    box.aside("peft-gguf", str(tmp_path / "peft.gguf"), "float32")

    assert box.gguf("Q8_0").read_bytes() == (tmp_path / "peft.gguf").read_bytes()
    assert json.loads((box.layout.stage(Stage.GGUF) / "tools.json").read_text())["merge"] == "peft-fp32"


def test_code_of_the_model_folder_is_never_run(adapted: NanoBox, tmp_path: Path) -> None:
    """The converter trusts remote code, so it is shown a folder without Python files and without auto_map."""
    box = adapted.fork(tmp_path / "box")
    model, trace = box.layout.model, tmp_path / "ran"
    (model / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    box.edit(model / "config.json", auto_map={"AutoConfig": "evil.Evil"})
    box.edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})

    box.succeed("gguf")

    assert not trace.exists()
    seen = box.layout.stage(Stage.GGUF) / "base"
    assert not list(seen.glob("*.py"))
    assert "auto_map" not in (seen / "config.json").read_text() + (seen / "tokenizer_config.json").read_text()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer_config.json", {"homeport_pre_tokenizer": None}, "does not know this tokenizer"),
        ("config.json", {"architectures": ["HomeMadeForCausalLM"]}, "does not know HomeMadeForCausalLM"),
    ],
)
def test_a_base_that_llama_cpp_does_not_know_is_refused_before_training(
    adapted: NanoBox, tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    """`prepare` refuses what could never become a GGUF, and so does the stage itself: nothing is guessed."""
    box = adapted.fork(tmp_path / "box")
    box.edit(box.layout.model / file, **change)

    prepared, done = box.call("prepare"), box.call("gguf")

    assert prepared.returncode == Exit.BAD_CONFIG
    assert message in prepared.stdout
    assert done.returncode == Exit.GGUF_GATE
    assert message in done.stderr


def test_weights_beyond_float16_take_the_way_over_bfloat16(adapted: NanoBox, tmp_path: Path) -> None:
    """K-quants start from float16 unless a merged weight would become infinite there."""
    box = adapted.fork(tmp_path / "box")
    box.set(gguf=["Q6_K"])
    box.edit(box.adapter_config, lora_alpha=50_000_000)

    done = box.call("gguf")

    assert done.returncode == Exit.OK, done.stderr
    assert "too large for float16" in done.stdout
    assert box.gguf("Q6_K").exists()


def test_a_quantised_base_is_refused(adapted: NanoBox, tmp_path: Path) -> None:
    """An adapter cannot be merged into weights that are stored quantised."""
    box = adapted.fork(tmp_path / "box")
    box.edit(box.layout.model / "config.json", quantization_config={"quant_method": "fp8"})

    done = box.call("gguf")

    assert done.returncode == Exit.MERGE_GATE
    assert "16-bit" in done.stderr
