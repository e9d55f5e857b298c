"""What the GGUF tests do with torch, which only the box image has. Run in a box's root with the image's Python.

adapter            a random LoRA adapter over model/, as SFT would leave it
break HOW          damage that adapter: `nan`, or `stray` (a target that the model does not have)
peft-gguf PATH K   PEFT merges that adapter into a model of K (float32, float64), the converter writes a Q8_0 from the
                   folder in float32: the reference
zero PATH NAME     set one tensor of a GGUF to zeros
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from remote_payload import converter
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


def zero(path: str, name: str) -> None:
    sys.path.insert(0, str(converter.locate(Path()) / "gguf-py"))
    import gguf

    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    with open(path, "r+b") as f:
        f.seek(tensor.data_offset)
        f.write(bytes(tensor.n_bytes))


COMMANDS = {"adapter": adapter, "break": break_, "peft-gguf": peft_gguf, "zero": zero}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
