"""From an adapter to hashed GGUF files, with the product's own code, on random weights of a real shape.

    python tests/benchmarks/gpu/bench_gguf.py --shape qwen7b --root DIR --converter DIR [--threads 1] [--gguf Q8_0 ...]

Makes the model first (not timed; 15 GB for the 7B, so DIR needs 25 GB, and 20 more for K-quants). Prints one JSON line
a file: seconds to import and prepare, to write, to hash, and from the start until then; the file's sha256, by which
runs with different numbers of threads are compared. The first K-quant's seconds are those of the 16-bit file too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))
BEGAN = time.monotonic()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from remote_payload import ahead, gguf, hashes, llama  # noqa: E402
from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Stage  # noqa: E402
from remote_payload.layout import Layout  # noqa: E402
from remote_payload.merge import read_deltas  # noqa: E402
from remote_payload.quants import QUANTS  # noqa: E402
from remote_payload.stream import Conversion, clean_copy  # noqa: E402

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "qwen7b": (3584, 18944, 28, 28, 4, 152064),
    "mid": (1024, 4096, 12, 16, 8, 49152),
    "tiny": (256, 512, 2, 4, 2, 512),
}
RANK = 64


def make_model(folder: Path, shape: str) -> None:
    """A Llama of that shape with weights from one repeated random block: making 15 GB of them anew takes minutes."""
    hidden, inner, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    shutil.copytree(REPOSITORY / "daemon" / "sandbox" / "models" / "nano", folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text()) | {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
    }
    (folder / "config.json").write_text(json.dumps(config))
    block = (torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()

    def weight(*size: int) -> torch.Tensor:
        count = torch.Size(size).numel()
        return block.repeat(-(-count // block.numel()))[:count].view(size).clone()

    def shards() -> Iterator[dict[str, torch.Tensor]]:
        outer = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
        norm = torch.ones(hidden, dtype=torch.bfloat16)
        yield {name: weight(*size) for name, size in outer.items()} | {"model.norm.weight": norm}
        for i in range(layers):
            inside = {
                f"{n}.weight": weight(*size) for n, size in linears(hidden, inner, kv_heads * hidden // heads).items()
            }
            inside |= {f"{n}_layernorm.weight": norm.clone() for n in ("input", "post_attention")}
            yield {f"model.layers.{i}.{name}": tensor for name, tensor in inside.items()}

    where: dict[str, str] = {}
    for i, shard in enumerate(shards()):
        file = f"model-{i:05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        where |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def linears(hidden: int, inner: int, key: int) -> dict[str, tuple[int, int]]:
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def make_adapter(folder: Path, shape: str) -> None:
    hidden, inner, layers, heads, kv_heads, _ = SHAPES[shape]
    folder.mkdir()
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for i in range(layers):
        for name, (out, into) in linears(hidden, inner, kv_heads * hidden // heads).items():
            prefix = f"base_model.model.model.layers.{i}.{name}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(RANK, into, generator=random) * 0.01
            tensors[f"{prefix}B.weight"] = torch.randn(out, RANK, generator=random) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=ahead.THREADS)
    parser.add_argument("--gguf", nargs="+", choices=QUANTS, default=["Q8_0"])
    args = parser.parse_args()
    imports = time.monotonic() - BEGAN
    args.root.mkdir(parents=True, exist_ok=True)
    if not (args.root / "adapter").exists():
        make_model(args.root / "model", args.shape)
        print(json.dumps({"made_s": round(time.monotonic() - BEGAN - imports, 1)}), flush=True)
        make_adapter(args.root / "adapter", args.shape)
    shutil.rmtree(args.root / "base", ignore_errors=True)
    ahead.THREADS = args.threads

    began = time.monotonic()
    base = clean_copy(args.root / "model", args.root / "base")
    deltas, engine = read_deltas(args.root / "adapter"), llama.available(args.root, patience_s=0)
    conversion = Conversion(args.converter.resolve(), base, deltas, "bench", engine)
    prepared = time.monotonic()
    layout = Layout(args.root)
    for folder in (layout.out, layout.stage(Stage.GGUF)):
        folder.mkdir(parents=True, exist_ok=True)
    job = JobFile("bench1", 1, "bench", ModelSource("bench"), [], Integration("BENCH", 0, 0), Lora(), args.gguf)
    for file in gguf.written(conversion, layout, job):
        written = time.monotonic()
        digest = hashes.digest(file.path)
        hashed = time.monotonic()
        told = {
            "quant": file.quant.name,
            "shape": args.shape,
            "threads": args.threads,
            "cores": len(os.sched_getaffinity(0)),
            "bytes": file.size,
            "compiled_q8_0": engine is not None,
            "import_s": round(imports, 1),
            "prepare_s": round(prepared - began, 1),
            "write_s": file.seconds,
            "hash_s": round(hashed - written, 1),
            "since_start_s": round(imports + hashed - began, 1),
            "sha256": digest.sha256[:16],
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
