"""The reference job from `prepare` to the manifest, by the product's own chain: minutes of each stage on this card.

    python tests/benchmarks/gpu/bench_reference_job.py --root DIR --converter DIR [--sft-steps 150] [--dpo-steps 80]
        [--gguf Q8_0 Q4_K_M]

Settings and 15300 + 2550 + 400 rows of docs/examples/forex/reference.yaml, on random weights of the 7B's shape (made
first, not timed; DIR needs 40 GB, and 10 for each further quantisation). Fewer steps cut a stage short; `full_s` then
adds the missing ones by the median step. Prints one JSON line as each part ends. Random weights learn nothing, so no
gate may end the job.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench_gguf  # first: it finds the package
import ecb

from remote_payload import contract
from remote_payload.contract import Integration, JobFile, Lora, ModelSource, Stage, StagePlan, StageTraining
from remote_payload.layout import Layout
from remote_payload.progress import read_from

FULL = {Stage.SFT: 479, Stage.DPO: 80}  # steps of the whole job
DOLLARS_PER_HOUR = 2.06
WARM_UP = 3  # steps
NO_LIMITS = {
    "loss_rise": 1e9, "grad_norm": 1e9, "reward_accuracy": 0.0, "reward_margin": -1e9, "chosen_fall": 1e9,
    "held_out_nll": -1e9, "sft_perplexity": 1e9,
}  # fmt: skip


def make_root(
    root: Path, shape: str, converter: Path, steps: dict[Stage, int], counts: tuple[int, int, int], gguf: list[str]
) -> Layout:
    layout = Layout(root)
    shutil.rmtree(layout.run, ignore_errors=True)
    layout.run.mkdir(parents=True)
    if not layout.model.exists():
        bench_gguf.make_model(layout.model, shape)
    if not (root / contract.CONVERTER_DIR).exists():
        shutil.copytree(converter, root / contract.CONVERTER_DIR)
    rows = ecb.rows(*counts, think=True)
    job = JobFile(
        job="bench1",
        attempt=1,
        name="forex-v2",
        model=ModelSource("random"),
        stages=[StagePlan(stage, f"bench-{stage.lower()}") for stage in Stage],
        integration=Integration("V2 FOREX INTEGRATION", counts[0], counts[1]),
        lora=Lora(r=16, alpha=32),
        gguf=gguf,
        sft_data=ecb.file(root, rows["sft"]),
        dpo_data=ecb.file(root, rows["dpo"]),
        eval_data=ecb.file(root, rows["eval"]),
        sft=StageTraining(lr=2e-4, max_steps=steps[Stage.SFT]),
        dpo=StageTraining(lr=1e-5, max_steps=steps[Stage.DPO]),
        max_length=1024,
        reasoning="keep",
        gates=NO_LIMITS,
        choices=["rose", "fell"],
    )
    contract.write_whole(layout.run / contract.JOB_FILE, contract.dump(job))
    return layout


def python(layout: Layout, *arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ecb.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(layout.root / "output", "ab") as log:
        command = [sys.executable, "-m", *arguments, "--root", str(layout.root)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log)


def told(stage: Stage, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the events of one finished stage say of its time."""
    began, ended = lines[0]["t"], lines[-1]["t"]
    found: dict[str, Any] = {"stage": stage, "seconds": round(ended - began, 1)}
    steps = [line for line in lines if line["kind"] == "step"]
    if steps:
        pace = [(b["t"] - a["t"], b["tokens"] - a["tokens"]) for a, b in itertools.pairwise(steps)][WARM_UP:]
        step_s = statistics.median(seconds for seconds, _ in pace)
        found |= {
            "steps": len(steps),
            "first_step_s": round(steps[0]["t"] - began, 1),
            "after_last_step_s": round(ended - steps[-1]["t"], 1),
            "step_s": round(step_s, 3),
            "tok_s": round(sum(tokens for _, tokens in pace) / sum(seconds for seconds, _ in pace)),
            "tokens_a_step": round(steps[-1]["tokens"] / len(steps)),
            "eta_after_5_percent": off(steps),
            "full_s": round(ended - began + (FULL[stage] - len(steps)) * step_s, 1),
        }
    for line in lines:
        if line["kind"] in ("gguf", "manifest"):
            name = line.get("quant", line["kind"])
            found[f"{name}_at_s"] = round(line["t"] - began, 1)
    return found


def off(steps: list[dict[str, Any]]) -> float:
    """By what share the time left, as told after a twentieth of the steps, was wrong."""
    at = steps[max(1, len(steps) // 20)]
    left = steps[-1]["t"] - at["t"]
    return round((at["eta_s"] - left) / left, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--shape", choices=bench_gguf.SHAPES, default="qwen7b")
    parser.add_argument("--sft-steps", type=int, default=FULL[Stage.SFT])
    parser.add_argument("--dpo-steps", type=int, default=FULL[Stage.DPO])
    parser.add_argument("--rows", type=int, nargs=3, default=[15_300, 2_550, 400], metavar=("SFT", "DPO", "EVAL"))
    parser.add_argument("--gguf", nargs="+", default=["Q8_0"])
    args = parser.parse_args()
    steps = {Stage.SFT: args.sft_steps, Stage.DPO: args.dpo_steps}
    layout = make_root(args.root, args.shape, args.converter, steps, tuple(args.rows), args.gguf)

    began = time.monotonic()
    code = python(layout, "remote_payload.prepare").wait()
    print(json.dumps({"prepare_s": round(time.monotonic() - began, 1), "exit": code}), flush=True)
    total = 0.0
    if code == 0:
        chain = python(layout, "remote_payload.run", "chain")
        unseen = list(Stage)
        while unseen:
            ended = chain.poll() is not None
            lines, _ = read_from(layout.events, 0)
            of = [line for line in lines if line["nonce"] == f"bench-{unseen[0].lower()}"]
            if of and of[-1]["kind"] == "stage_done":
                found = told(unseen.pop(0), of)
                total += found.get("full_s", found["seconds"])
                print(json.dumps(found), flush=True)
            elif ended:
                print((layout.root / "output").read_text(errors="replace")[-3000:], layout.log.read_text()[-6000:])
                sys.exit(1)
            else:
                time.sleep(0.2)
        chain.wait()
        dollars = round(total / 3600 * DOLLARS_PER_HOUR, 3)
        print(json.dumps({"whole_job_min": round(total / 60, 2), "dollars": dollars}), flush=True)


if __name__ == "__main__":
    main()
