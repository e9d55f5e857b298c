"""What the GGUF tests do with torch, which only the box image has. Run in a box's root with the image's Python.

adapter            a random LoRA adapter over model/, as SFT would leave it
break HOW          damage that adapter: `nan`, or `stray` (a target that the model does not have)
peft-gguf PATH K   PEFT merges that adapter into a model of K (float32, float64), the converter writes a Q8_0 from the
                   folder in float32: the reference
answers            hold the reference answers, bit by bit, against those of the model that PEFT merges and of the base
                   model, and the room that they take against one model's
short              `evaluate` where the card runs out of memory as the model answers on it
zero PATH NAME     set one tensor of a GGUF to zeros
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from remote_payload import answers, converter, evaluate, reference
from remote_payload.layout import Layout
from remote_payload.quants import QUANTS
from remote_payload.stream import Conversion, clean_copy

ADAPTER = Path("run/sft/adapter")
WEIGHTS = ADAPTER / "adapter_model.safetensors"


def adapter() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(ADAPTER)


def break_(how: str) -> None:
    tensors = load_file(WEIGHTS)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.lora_A.weight"))
    if how == "nan":
        tensors[name][0, 0] = float("nan")
    else:
        for half in "AB":
            own = name.replace("lora_A", f"lora_{half}")
            tensors[own.replace("layers.1", "layers.7")] = tensors.pop(own)
    save_file(tensors, WEIGHTS)


def peft_gguf(path: str, kind: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained("model", dtype=getattr(torch, kind))
    merged = Path("peft-merged")
    PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().float().save_pretrained(merged)
    for file in clean_copy(Path("model"), Path("peft-base")).iterdir():
        if not (merged / file.name).exists() and file.suffix != ".safetensors":
            (merged / file.name).write_bytes(file.read_bytes())
    Conversion(converter.locate(Path()), merged, {}, "forex").write(QUANTS["Q8_0"], Path(path))


def answers_() -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ask, asked, room = reference.answer_all, [], []

    def watched(model: Any, *questions: Any) -> Any:
        asked.append(questions)
        made = ask(model, *questions)
        own = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in model.parameters()}
        alive = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        beside = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in alive if not tensor.is_meta}
        room.append(sum((beside | own).values()) / sum(own.values()))
        return made

    reference.answer_all = watched
    layout = Layout(Path.cwd())
    ours, theirs = answers.ask(layout, layout.read_job(), on_cards=False)
    assert room[0] < 1.05, f"{room[0]:.2f} models in memory"

    base = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float64)
    merged = PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().float().eval()
    for answer, expected in zip(ours, ask(merged, *asked[0]), strict=True):
        assert answer.ids == expected.ids and np.array_equal(answer.logs, expected.logs)
    base = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32).eval()
    for answer, logs in zip(ours, theirs, strict=True):
        assert np.array_equal(logs, reference.log_probabilities(base, answer.ids, answer.start))


def short() -> None:
    ask = reference.answer_all

    def on_a_card(*question: Any) -> Any:
        reference.answer_all = ask
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 130.00 MiB.")

    reference.answer_all = on_a_card
    torch.cuda.is_available = lambda: True
    sys.argv[1:] = []
    raise SystemExit(evaluate.main())


def zero(path: str, name: str) -> None:
    sys.path.insert(0, str(converter.locate(Path()) / "gguf-py"))
    import gguf

    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    with open(path, "r+b") as f:
        f.seek(tensor.data_offset)
        f.write(bytes(tensor.n_bytes))


COMMANDS = {
    "adapter": adapter,
    "answers": answers_,
    "break": break_,
    "peft-gguf": peft_gguf,
    "short": short,
    "zero": zero,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
