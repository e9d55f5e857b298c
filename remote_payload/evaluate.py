"""GGUF stage, second part: reference answers, the box's own score of each GGUF, and a complete run/out.

The merged model is scored in float32 with exactly the weights that the GGUF stage converted. Where llama-cpp-python is
present, each file is then loaded and held against it: a file that is not this model fails here, where it can still be
made again. Idempotent.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from remote_payload import answers, llama, outbox, prompts, reference, script
from remote_payload.contract import Exit, JobFile, Quality, Stage, write_whole
from remote_payload.layout import Layout, final_adapter
from remote_payload.progress import Events
from remote_payload.reference import Answer, Logs
from remote_payload.script import ScriptFailed

# Mean divergence in nats above which a file is not the model it was made from. The worst honest ones known, of a model
# with 135M weights: Q8_0 0.005, Q6_K 0.012, Q4_K_M 0.058, Q5_K_M 0.080. One zeroed tensor gave 0.34.
CAPS = {"F16": 0.01, "BF16": 0.01, "Q8_0": 0.02, "Q6_K": 0.05, "Q5_K_M": 0.3, "Q4_K_M": 0.3}

# Texts that tokenizers disagree about when something is wrong with one of them.
PROBES = (
    "Hello world",
    " leading space, trailing space ",
    "two  spaces   three\tand\ta tab",
    "line\nbreak\n\nand a blank line\r\n",
    "EUR/USD closed at 1.0832, 1.0875 and 1.0901.",
    "1234567890 3.14159 -42 1e-9 50%",
    "don't we'll I'M they've",
    "naïve café Ünïcödé",
    "最新汇率 日本円 환율",
    "Курс евро ελληνικά עברית العربية",
    "🚀 👩‍👩‍👧 💶",
    "def f(x):\n    return {x: [1, 2]}  # comment",
    "<think>\nreason\n</think>\n\nbuy",
    "https://www.ecb.europa.eu/stats?a=1&b=2",
    "....!!!???---",
)


def main() -> int:
    return script.run(Stage.GGUF, evaluate)


def evaluate(layout: Layout, job: JobFile, events: Events) -> Exit:
    work = layout.stage(Stage.GGUF)
    tokenizer = AutoTokenizer.from_pretrained(work / "base")
    reference_answers, base = answers.known(layout, job)
    header = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "probes": [{"text": text, "ids": prompts.encode(tokenizer, text)} for text in PROBES],
    }
    reference.write(layout.out / "reference.jsonl", header, reference_answers, base, tokenizer.decode)

    quality = _score_files(layout, job, header["probes"], reference_answers, base, events)
    write_whole(work / "quality.json", json.dumps([dataclasses.asdict(q) for q in quality], allow_nan=False))
    outbox.fill(layout, job, final_adapter(layout, job))
    return Exit.OK


def _score_files(
    layout: Layout, job: JobFile, probes: list[dict[str, Any]], answers: list[Answer], base: list[Logs], events: Events
) -> list[Quality]:
    engine = llama.available(layout.root)
    if engine is None:
        print("evaluate: llama-cpp-python is not here, so the files were not tried on this box", flush=True)
        events.emit("warn", msg="GGUF files were not tried on the box: no llama-cpp-python")
        return []
    quality = []
    for quant in job.gguf:
        score = _score(engine, layout.out / f"{job.name}-{quant}.gguf", quant, probes, answers, base)
        print(f"evaluate: {quant} KL {score.kl_mean:.5f}, top-1 {score.top1:.3f} over {score.positions}", flush=True)
        sound = score.kl_mean <= CAPS[quant]
        events.emit("gate", name=f"{quant} KL", ok=sound, value=score.kl_mean, limit=CAPS[quant])
        if not sound:
            raise ScriptFailed(Exit.GGUF_GATE, f"{quant} diverges from the model by {score.kl_mean:.4f} nats")
        quality.append(score)
    return quality


def _score(
    engine: ModuleType, path: Path, quant: str, probes: list[dict[str, Any]], answers: list[Answer], base: list[Logs]
) -> Quality:
    """Load the file, hold its tokenizer and its distributions against the reference."""
    scorer = llama.Scorer(engine, path, context=max(len(answer.ids) for answer in answers) + 1)
    try:
        texts = [(probe["text"], probe["ids"]) for probe in probes]
        for text, ids in texts + [(answer.prompt.text, answer.prompt.ids) for answer in answers]:
            if scorer.tokens(text) != ids:
                raise ScriptFailed(Exit.GGUF_GATE, f"{path.name} splits {text[:40]!r} into other tokens than the model")
        theirs = [scorer.log_probabilities(answer.ids, answer.start) for answer in answers]
    finally:
        scorer.close()
    if not all(np.isfinite(logs).all() for logs in theirs):
        raise ScriptFailed(Exit.GGUF_GATE, f"{path.name} gives logits that are not numbers")
    ours = np.concatenate([answer.logs for answer in answers])
    kl = reference.divergence(ours, np.concatenate(theirs))
    return Quality(
        quant=quant,
        kl_mean=float(kl.mean()),
        kl_p95=float(np.quantile(kl, 0.95)),
        kl_max=float(kl.max()),
        top1=float((ours.argmax(1) == np.concatenate(theirs).argmax(1)).mean()),
        positions=len(kl),
        base_kl_mean=float(reference.divergence(ours, np.concatenate(base)).mean()),
    )


if __name__ == "__main__":
    sys.exit(main())
