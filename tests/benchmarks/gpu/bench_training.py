"""How fast SFT and DPO train on this card: the product's own trainers on random weights of a real shape.

    python tests/benchmarks/gpu/bench_training.py [--shape qwen7b] [--r 64] [--steps 8] VARIANT...

A variant is a stage and what differs from the fast way, joined by +: `sft`, `dpo`, `sft+plain`, `sft+no-kernels`,
`sft+no-fused`, `sft+no-head`, `sft+recompute`, `dpo+no-sharing`, `sft+tokens=4096`; `sft+profile` adds what the card
did in one step. Samples are as long as a lognormal says (median 365, 64 to 1024 tokens); an SFT sample is trained
whole, a pair is one third prompt. Only real tokens are counted, those of a prompt once for each of its answers.
Prints one JSON line a variant: tokens a second over all steps after the warm-up and by the median step, share of 989
TFLOP/s by 4N a token (6N for a pair), peak memory, seconds from the process's and the trainer's start to the first
step's end. Random weights do: speed does not depend on values.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

BEGAN = time.perf_counter()
REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))

# As the chain starts a stage. Steps differ in length, and plain segments then leave holes that end in flushes.
os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config  # noqa: E402
from trl.kernels.chunked_logprob import ChunkedLogProbFunction  # noqa: E402

from remote_payload import contract, dpo, fused_lora, head, kernels, packing, recompute, sft, speed, training  # noqa: E402
from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Prepared, Stage, StageTraining  # noqa: E402
from remote_payload.layout import Layout  # noqa: E402
from remote_payload.recompute import Room  # noqa: E402
from remote_payload.tokens import Pair, Sample  # noqa: E402

CUDA = torch.cuda.is_available()
PEAK = 989e12  # FLOP/s in bf16, by the H100's data sheet
WARM_UP = 3
BATCH = 32  # samples or pairs an optimizer step, the default of a job
COMMON: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32768}
SHAPES: dict[str, Any] = {
    "qwen7b": lambda: Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False, **COMMON,
    ),
    "qwen1.5b": lambda: Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True, **COMMON,
    ),
    "llama8b": lambda: LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False, **COMMON,
    ),
    "small": lambda: Qwen2Config(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
        num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False, **COMMON,
    ),
    "tiny": lambda: Qwen2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=1024, tie_word_embeddings=False, **COMMON,
    ),
}  # fmt: skip


class TwicePassedHead:
    """TRL's own head in the place of ours: the vocabulary's product once more in the backward."""

    @staticmethod
    def apply(hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
        found = ChunkedLogProbFunction.apply(hidden, weight, None, tokens, 1.0, 32768, None, 1.0, outputs)
        return found[0], found[1], found[3], found[4]


def unshared(self: packing.PairSteps, pairs: list[dict[str, list[int]]], step: int) -> packing.Row:
    """packing.PairSteps.micro_batch with every answer's prompt computed anew."""
    batch: packing.Row = self.padded(pairs)
    width, pieces, start = batch["input_ids"].shape[1] - 1, [], 0
    for answer, first in (("chosen_ids", 0), ("rejected_ids", len(pairs))):
        for i, pair in enumerate(pairs):
            before, ids = len(pair["prompt_ids"]), pair["prompt_ids"] + pair[answer]
            places = list(range(start + before - 1, start + len(ids) - 1))
            scored = packing.scores(places, pair[answer], (first + i) * width + before)
            pieces.append(packing.Piece(ids, scored))
            start += len(ids)
    return batch | {"packed": packing.row(pieces), "share": len(pairs) / step}


OFF: dict[str, tuple[Any, str, Any]] = {
    "no-kernels": (kernels, "apply", lambda model: []),
    "no-fused": (fused_lora, "fuse", lambda model: None),
    "no-head": (head, "LogProbs", TwicePassedHead),
    "no-sharing": (packing.PairSteps, "micro_batch", unshared),
    "recompute": (recompute, "room", lambda *_: Room(16384, recompute=True)),
}


class Gaps(transformers.TrainerCallback):
    """Records two whole steps after the warm-up and says where the card had nothing to do."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as recording

        self.recorded = recording(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM_UP:
            self.recorded.start()
        if state.global_step == WARM_UP + 2:
            self.recorded.stop()
            self.tell()

    def tell(self) -> None:
        kinds = [e for e in self.recorded.events() if e.device_type.name != "CPU"]
        spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in kinds)
        gaps, (first, until, before) = [], spans[0]
        for start, end, name in spans[1:]:
            if start > until:
                gaps.append((start - until, until - first, before, name))
            if end > until:
                until, before = end, name
        idle = sum(gap for gap, *_ in gaps)
        print(f"gaps: idle {idle / 1e3:.0f} of {(until - first) / 1e3:.0f} ms, {len(gaps)} of them")
        for gap, at, before, name in sorted(gaps, reverse=True)[:40]:
            print(f"{gap / 1e3:8.2f} ms at {at / 1e3:8.1f}: {before[:50]} | {name[:60]}")


class Clock(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def build(shape: str) -> Any:
    """A model with random weights made where they lie: 15 GB in a second."""
    torch.manual_seed(0)
    config = SHAPES[shape]()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if CUDA else torch.float32)
    model = model.to_empty(device="cuda" if CUDA else "cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.02) if weight.ndim > 1 else weight.fill_(1.0)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(model.device)  # its buffers came empty too
    model.tie_weights()
    return model


def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(1000)}, unk_token="t3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", bos_token="t1", eos_token="t2")


def rows(stage: Stage, count: int) -> tuple[list[Any], list[int]]:
    """Samples or pairs, and the tokens of each as the plain way would compute them."""
    rng = random.Random(0)
    lengths = [int(min(1024, max(64, rng.lognormvariate(5.9, 0.6)))) for _ in range(count)]

    def ids(n: int) -> list[int]:
        return [rng.randrange(3, 1000) for _ in range(n)]

    if stage is Stage.SFT:
        return [Sample(x, x, False) for x in map(ids, lengths)], lengths
    pairs = [Pair(ids(n // 3), ids(n - n // 3), ids(n - n // 3), False) for n in lengths]
    return pairs, [2 * n for n in lengths]


def matmul_weights(config: Any) -> int:
    """N of 4N: what every token is multiplied by."""
    heads = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    attention = 2 * config.hidden_size * (config.hidden_size + heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * layer + config.hidden_size * config.vocab_size


@contextmanager
def switched_off(options: list[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in options:
            if name in OFF:
                stack.enter_context(mock.patch.object(*OFF[name]))
        yield


def run(variant: str, shape: str, r: int, steps: int, root: Path) -> None:
    name, *options = variant.split("+")
    stage = Stage(name.upper())
    tokens = next((int(o.removeprefix("tokens=")) for o in options if o.startswith("tokens=")), None)
    learn = StageTraining(lr=1e-5)
    job = JobFile(
        "j00001", 1, "bench", ModelSource("bench"), [], Integration("bench", 0, 0), Lora(r=r, alpha=2 * r), [],
        sft=learn, dpo=learn, batch_size=BATCH, speed="plain" if "plain" in options else "fast",
    )  # fmt: skip
    layout = Layout(root)
    layout.run.mkdir(parents=True, exist_ok=True)
    contract.write_whole(layout.prepared, contract.dump(Prepared(True, "", 0, 0, steps={stage: steps})))
    data, sizes = rows(stage, 40 * BATCH)
    model = training.attach_adapter(build(shape), job, None)
    config = model.get_base_model().config
    module = sft if stage is Stage.SFT else dpo
    with switched_off(options):
        if tokens:
            with mock.patch.object(recompute, "room", lambda *_: Room(tokens, recompute=False)):
                room = speed.quicken(model, job, 1024, None).room
        else:
            room = speed.quicken(model, job, 1024, None).room
        settings = training.arguments(layout, job, stage, learn, room) | {"save_strategy": "no"}
        trainer = module.make_trainer(model, tokenizer(), data, settings, room)
        clock = Clock()
        trainer.add_callback(clock)
        if "gaps" in options:
            trainer.add_callback(Gaps())
        trainer.remove_callback(transformers.PrinterCallback)
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        trainer.train()
        taken = [b - a for a, b in zip(clock.ends[WARM_UP - 1 :], clock.ends[WARM_UP:], strict=False)]
        order = list(trainer._get_train_sampler())[WARM_UP * BATCH : (WARM_UP + len(taken)) * BATCH]
        seconds, real = sum(taken), sum(sizes[i] for i in order)
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        n = matmul_weights(config) * (4 if stage is Stage.SFT else 6)
        line = {
            "variant": variant, "shape": shape, "r": r,
            "tok_s": round(real / seconds), "tok_s_median": round(real / len(taken) / statistics.median(taken)),
            "s_step": round(statistics.median(taken), 3), "tok_step": real // len(taken),
            "mfu": round(real / seconds * n / PEAK, 3), "room": room and room.tokens,
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if CUDA else None,
            "since_start_s": round(clock.ends[0] - BEGAN, 1), "first_step_s": round(clock.ends[0] - began, 1),
            "losses": [round(x, 4) for x in losses[:7]],
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        if "profile" in options:
            profile(trainer)


def profile(trainer: Any) -> None:
    """Where the card's time goes in one more step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    batch = next(iter(trainer.get_train_dataloader()))
    torch.cuda.synchronize()
    with recording(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        began = time.perf_counter()
        trainer.training_step(
            trainer.model_wrapped, batch, batch["labels"].ne(-100).sum() if "labels" in batch else None
        )
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    events = [e for e in recorded.key_averages() if e.self_device_time_total and e.device_type.name != "CPU"]
    busy = sum(e.self_device_time_total for e in events)
    tokens = batch["input_ids"].numel()
    print(f"profile: {tokens} tokens, {wall * 1e3:.0f} ms with the recorder on, card busy {busy / 1e3:.0f} ms")
    for e in sorted(events, key=lambda e: -e.self_device_time_total)[:24]:
        share, spent = e.self_device_time_total / busy, e.self_device_time_total / 1e3
        print(f"{share:6.1%} {spent:8.1f} ms {e.count:6d} {e.key[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+")
    parser.add_argument("--shape", choices=SHAPES, default="qwen7b")
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    asked = parser.parse_args()
    for variant in asked.variants:
        with tempfile.TemporaryDirectory() as root:
            try:
                run(variant, asked.shape, asked.r, asked.steps, Path(root))
            except Exception as error:  # noqa: BLE001  # the other variants are still worth their time
                print(json.dumps({"variant": variant, "error": f"{type(error).__name__}: {error}"[:300]}), flush=True)
                traceback.print_exc(limit=-4)
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
