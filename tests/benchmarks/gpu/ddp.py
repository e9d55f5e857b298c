"""Ranks against one process on the cards of one host, with the product's own stages on random weights of a real shape.

    python tests/benchmarks/gpu/ddp.py [--shape qwen7b] [--cards 2] [--stage sft] [--steps 30] [RUN...]

A RUN is one of: `single`, `ddp`, `auto_map`; `killed` (kill -9 of a rank in mid stage, then once more to the end);
`hung` (a rank stops answering); `trial` (what `placement: auto` decides). All by default, and `single` first, as the
others are held against it. Each has a root of its own under --work, where its stage is started as the chain starts it.
Prints one JSON line a run: median step after the warm-up, real tokens a second, seconds from the start to the first
step's end, and beside `single` of the same call the efficiency and the largest difference of a loss. Where torch sees
no cards the ranks are CPU processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
REPOSITORY = HERE.parents[3]
sys.path[:0] = [str(REPOSITORY), str(HERE.parents[2] / "payload"), str(HERE.parent)]

from remote_payload import contract, placement  # noqa: E402
from remote_payload.chain import ENVIRONMENT  # noqa: E402
from remote_payload.contract import (  # noqa: E402
    DataFile,
    Integration,
    JobFile,
    Lora,
    ModelSource,
    Prepared,
    Stage,
    StagePlan,
    StageTraining,
)
from remote_payload.layout import Layout  # noqa: E402
from remote_payload.placement import Placed  # noqa: E402
from remote_payload.progress import read_from  # noqa: E402
from remote_payload.ranks import Ranks  # noqa: E402

WARM_UP = 3  # steps
BATCH = 32
WORDS = ("euro", "rate", "cost", "units", "rose", "fell")
HANG_LIMIT_S = 120  # after which a hang must have been noticed
LIMIT_S = 500  # of one run

Steps = list[dict[str, Any]]


@dataclasses.dataclass
class Bench:
    """Everything that all runs share."""

    work: Path
    shape: str
    cards: int
    stage: Stage
    steps: int
    on_cards: bool
    alone: Steps = dataclasses.field(default_factory=list)  # what `single` came to
    alone_tok_s: float = 0.0

    def root(self, name: str, asked: str, **changes: Any) -> Layout:
        """A fresh root whose stage may start at once: the model, the rows, and what `prepare` would have counted."""
        layout = Layout(self.work / name)
        shutil.rmtree(layout.root, ignore_errors=True)
        layout.run.mkdir(parents=True)
        layout.model.symlink_to(self.work / "model")
        (layout.root / "data").symlink_to(self.work / "data")
        kind = self.stage.lower()
        training = StageTraining(lr=1e-4, max_steps=self.steps)
        job = JobFile(
            job="bench1",
            attempt=1,
            name="bench",
            model=ModelSource("bench"),
            stages=[StagePlan(self.stage, "bench")],
            integration=Integration("BENCH", 0, 0),
            lora=Lora(r=64, alpha=128),
            gguf=[],
            placement=asked,
            batch_size=BATCH,
            max_length=1024,
            checkpoint_every=self.steps,
            reasoning="keep",
            # Pairs of random words teach nothing, so no limit may be missed.
            gates={"reward_accuracy": 0.0, "reward_margin": -1e9, "chosen_fall": 1e9},
            **{kind: training, f"{kind}_data": self.rows()},
        )
        contract.write_whole(layout.run / contract.JOB_FILE, contract.dump(dataclasses.replace(job, **changes)))
        prepared = Prepared(
            ok=True,
            line="",
            sft_rows=0,
            dpo_rows=0,
            kept={self.stage: self.steps * BATCH},
            steps={self.stage: self.steps},
            tokens={self.stage: self.steps * BATCH * 400},  # about; it only feeds the forecast of the remaining time
            max_length=1024,
            reasoning="keep",
        )
        contract.write_whole(layout.prepared, contract.dump(prepared))
        return layout

    def rows(self) -> DataFile:
        """Rows of lognormal length (median 365 tokens, 64 to 1024), enough that no step repeats one."""
        rng = random.Random(0)
        lines = [json.dumps(self.row(rng)) + "\n" for _ in range(self.steps * BATCH)]
        content = "".join(lines).encode()
        digest = hashlib.sha256(content).hexdigest()
        path = self.work / contract.DATA_DIR / f"{digest}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return DataFile(f"{contract.DATA_DIR}/{digest}.jsonl", digest, len(lines))

    def row(self, rng: random.Random) -> dict[str, Any]:
        def turn(role: str, words: int) -> dict[str, str]:
            return {"role": role, "content": " ".join(rng.choice(WORDS) for _ in range(words))}

        length = int(min(900, max(64, rng.lognormvariate(5.9, 0.6))))
        question, answer = length // 3, length - length // 3
        if self.stage is Stage.SFT:
            return {"messages": [turn("user", question), turn("assistant", answer)]}
        return {
            "prompt": [turn("user", question)],
            "chosen": [turn("assistant", answer)],
            "rejected": [turn("assistant", answer)],
        }

    def start(self, layout: Layout, processes: int, module: str | None = None) -> Ranks:
        command = [sys.executable, "-m", f"remote_payload.{module or self.stage.lower()}", "--root", str(layout.root)]
        command += ["--stage", self.stage] if module else []
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(self.cards)))} if self.on_cards else {}
        cpu = {} if self.on_cards else {"HOMEPORT_CPU_RANKS": str(self.cards)}
        with open(layout.log, "ab") as log:
            return Ranks.start(
                command, processes, {**os.environ, **ENVIRONMENT, **visible, **cpu, "PYTHONPATH": path}, log, []
            )

    def measured(self, layout: Layout, began: float) -> dict[str, Any]:
        steps = events(layout, "step")
        pace = [(b["t"] - a["t"], b["tokens"] - a["tokens"]) for a, b in itertools.pairwise(steps)][WARM_UP:]
        found: dict[str, Any] = {
            "steps": len(steps),
            "first_step_s": round(steps[0]["t"] - began, 1),
            "step_s": round(statistics.median(seconds for seconds, _ in pace), 4),
            "tok_s": round(sum(tokens for _, tokens in pace) / sum(seconds for seconds, _ in pace)),
            "loss": [round(steps[0]["loss"], 5), round(steps[-1]["loss"], 5)],
        }
        if self.alone:
            found["loss_difference"] = max(abs(a["loss"] - b["loss"]) for a, b in zip(self.alone, steps, strict=False))
        return found

    def plain(self, mode: str) -> dict[str, Any]:
        """One undisturbed run of `mode`."""
        processes = self.cards if mode == "ddp" else 1
        layout = self.root(mode, mode)
        if mode == "ddp":
            placement.decide(layout, layout.read_job(), Placed("ddp", processes))
        began = time.time()
        code = self.start(layout, processes).finish(LIMIT_S)
        if code != 0:
            return {"failed": code, "log": tail(layout)}
        found = self.measured(layout, began)
        if mode == "single":
            self.alone = events(layout, "step")
            self.alone_tok_s = found["tok_s"]
        elif self.alone:
            found["efficiency"] = round(found["tok_s"] / self.alone_tok_s / self.cards, 3)
        return found

    def disturbed(self, name: str, sent: signal.Signals) -> dict[str, Any]:
        """Send a signal to the last rank in mid stage, and see when that is noticed and whether it goes on."""
        every = max(2, self.steps // 3)
        layout = self.root(name, "ddp", checkpoint_every=every)
        placement.decide(layout, layout.read_job(), Placed("ddp", self.cards))
        ranks = self.start(layout, self.cards)
        until(lambda: (ranks.wait(0) is not None) or any(s["step"] > every for s in events(layout, "step")))
        ranks.processes[-1].send_signal(sent)
        hit = time.monotonic()
        code = ranks.finish(LIMIT_S)
        found: dict[str, Any] = {"noticed_s": round(time.monotonic() - hit, 1), "verdict": code}
        found["in_time"] = found["noticed_s"] < HANG_LIMIT_S
        again = self.start(layout, self.cards).finish(LIMIT_S)
        steps = events(layout, "step")
        found |= {
            "again": again,
            "resumed_from": [e["step"] for e in events(layout, "resume")],
            "last": steps[-1]["step"],
        }
        if self.alone:
            by_step = {s["step"]: s["loss"] for s in self.alone}
            found["loss_difference"] = max(abs(by_step[s["step"]] - s["loss"]) for s in steps)
        return found | ({} if again == 0 else {"log": tail(layout)})

    def trial(self) -> dict[str, Any]:
        """What `placement: auto` decides here, and how long that takes."""
        layout = self.root("trial", "auto")
        began = time.monotonic()
        code = self.start(layout, 1, "place").finish(LIMIT_S)
        said = events(layout, "placement")
        told = {key: said[0][key] for key in ("mode", "processes", "why")} if said else {"log": tail(layout)}
        return {"verdict": code, "seconds": round(time.monotonic() - began, 1), **told}


RUNS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "single": lambda bench: bench.plain("single"),
    "ddp": lambda bench: bench.plain("ddp"),
    "auto_map": lambda bench: bench.plain("auto_map"),
    "killed": lambda bench: bench.disturbed("killed", signal.SIGKILL),
    "hung": lambda bench: bench.disturbed("hung", signal.SIGSTOP),
    "trial": Bench.trial,
}


def build(folder: Path, shape: str) -> None:
    """Random weights of `shape` with the tests' tokenizer, whose vocabulary is the beginning of the shape's."""
    import tiny_model
    from bench_training import build as random_model

    tiny_model.build(folder)
    model = random_model(shape)
    bos, eos, pad = range(3)  # tiny_model's special tokens come first
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = bos, eos, pad
    model.save_pretrained(folder)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def events(layout: Layout, kind: str) -> Steps:
    return [line for line in read_from(layout.events, 0)[0] if line["kind"] == kind]


def tail(layout: Layout) -> str:
    return layout.log.read_text(errors="replace")[-1500:]


def machine() -> Iterator[tuple[str, Any]]:
    import torch

    yield "torch", torch.__version__
    yield "card", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    if torch.cuda.is_available():
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        yield "driver", subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0]
    yield "date", time.strftime("%Y-%m-%d", time.gmtime())


def main() -> None:
    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--shape", default="qwen7b")
    parser.add_argument("--cards", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument("--stage", default="sft", choices=["sft", "dpo"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("/tmp/ddp-bench"))
    parser.add_argument(
        "--build", type=Path, help=argparse.SUPPRESS
    )  # a process of its own, that leaves no memory taken
    args = parser.parse_args()
    if args.build:
        return build(args.build, args.shape)
    model = args.work / "model"
    if not (model / "built").exists():
        command = [sys.executable, str(HERE), "--build", str(model), "--shape", args.shape]
        subprocess.run(command, check=True)
        (model / "built").touch()
    bench = Bench(
        args.work, args.shape, args.cards, Stage(args.stage.upper()), args.steps, torch.cuda.device_count() > 0
    )
    print(json.dumps({"shape": args.shape, "stage": args.stage, "cards": args.cards, **dict(machine())}), flush=True)
    for run in args.runs or RUNS:
        print(json.dumps({"run": run, **RUNS[run](bench)}), flush=True)


if __name__ == "__main__":
    main()
