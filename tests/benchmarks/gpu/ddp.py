"""Ranks against one process on the cards of one host, with the product's own stages on random weights of a real shape.

    python tests/benchmarks/gpu/ddp.py [--shape qwen7b] [--cards 2] [--stage sft] [--steps 30] [--rows long] [RUN...]

A RUN is one of
- `single`, `ddp`, `auto_map`; `ddp_host`: the ranks exchange through the host's memory; `split`: one process whose
  forwards are half as large, so that rounding alone sets it apart from `single`
- `share2`, `share4`, `share8`: one process with what a rank of so many has to do
- `killed`: kill -9 of a rank in mid stage, then once more to the end; `hung`: a rank stops answering
- `trial`: what `placement: auto` decides
- `preflight`: the checks of the cards, with all of them, with the last one hidden, and with the last one busy

All by default, and `single` first, as the others are held against it. Each has a root of its own under --work, where
its stage is started as the chain starts it. Prints one JSON line a run: median step after the warm-up, real tokens a
second, seconds from the start to the first step's end, and beside `single` of the same call the efficiency and how far
losses differ, at most and on average. Where torch sees no cards the ranks are CPU processes.

Rows are the ECB's rates as docs/examples/forex makes them: `ecb` as they come, `long` some of them in one row, so that
lengths are about lognormal.
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
FOREX = REPOSITORY / "docs/examples/forex"
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
HANG_LIMIT_S = 120  # after which a hang must have been noticed
LIMIT_S = 240  # of one run
HOST_ONLY = {"NCCL_P2P_DISABLE": "1"}
BURN = "import torch; a = torch.randn(8192, 8192, device='cuda', dtype=torch.bfloat16)\nwhile True: a @ a"
CHECKS = (
    "import json; from dataclasses import asdict; from remote_payload import cards; "
    "print(json.dumps([asdict(check) for check in cards.checks()]))"
)

Steps = list[dict[str, Any]]


@dataclasses.dataclass
class Bench:
    """Everything that all runs share."""

    work: Path
    shape: str
    cards: int
    stage: Stage
    steps: int
    rows: str
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
            # So few steps on random weights teach little, so no limit may be missed.
            gates={"reward_accuracy": 0.0, "reward_margin": -1e9, "chosen_fall": 1e9},
            **{kind: training, f"{kind}_data": self.data()},
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

    def data(self) -> DataFile:
        """Rows enough that no step repeats one, in a file that is made once."""
        count = self.steps * BATCH
        source = self.work / f"{self.stage.lower()}-{self.rows}-{count}.jsonl"
        if not source.exists():
            source.write_text("".join(json.dumps(row) + "\n" for row in forex_rows(self.stage, self.rows, count)))
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        path = self.work / contract.DATA_DIR / f"{digest}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        return DataFile(f"{contract.DATA_DIR}/{digest}.jsonl", digest, count)

    def start(
        self, layout: Layout, processes: int, module: str | None = None, way: dict[str, str] | None = None
    ) -> Ranks:
        command = [sys.executable, "-m", f"remote_payload.{module or self.stage.lower()}", "--root", str(layout.root)]
        command += ["--stage", self.stage] if module else []
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(self.cards)))} if self.on_cards else {}
        cpu = {} if self.on_cards else {"HOMEPORT_CPU_RANKS": str(self.cards)}
        with open(layout.log, "ab") as log:
            return Ranks.start(
                command,
                processes,
                {**os.environ, **ENVIRONMENT, **visible, **cpu, **(way or {}), "PYTHONPATH": path},
                log,
                [],
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
        return found | self.beside_alone(steps)

    def beside_alone(self, steps: Steps) -> dict[str, float]:
        """How far the losses of `steps` are from those of one process, at most and on average."""
        alone = {step["step"]: step["loss"] for step in self.alone}
        apart = [abs(step["loss"] - alone[step["step"]]) for step in steps if alone]
        return {"loss_apart": round(max(apart), 6), "mean_apart": round(statistics.mean(apart), 6)} if apart else {}

    def plain(self, name: str, asked: str, way: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        """One undisturbed run."""
        processes = self.cards if asked == "ddp" else 1
        layout = self.root(name, asked, **changes)
        if asked == "ddp":
            placement.decide(layout, layout.read_job(), Placed("ddp", processes))
        began = time.time()
        code = self.start(layout, processes, way=way).finish(LIMIT_S)
        if code != 0:
            return {"failed": code, "log": tail(layout)}
        found = self.measured(layout, began)
        if name == "single":
            self.alone = events(layout, "step")
            self.alone_tok_s = found["tok_s"]
        elif self.alone:
            found["efficiency"] = round(found["tok_s"] / self.alone_tok_s / processes, 3)
        return found

    def share(self, ranks: int) -> dict[str, Any]:
        """What one rank of so many computes in a step, alone."""
        found = self.plain(f"share{ranks}", "single", batch_size=BATCH // ranks)
        return {key: value for key, value in found.items() if key not in ("loss_apart", "mean_apart")}

    def preflight(self) -> dict[str, Any]:
        """What the preflight says of the cards, in three states of the machine."""
        found: dict[str, Any] = {"all": self.checks(self.cards)}
        if self.on_cards:
            found["last_hidden"] = self.checks(self.cards - 1)
            last = {**os.environ, "CUDA_VISIBLE_DEVICES": str(self.cards - 1)}
            with subprocess.Popen([sys.executable, "-c", BURN], env=last) as burner:
                time.sleep(15)  # until it computes
                found["last_busy"] = self.checks(self.cards)
                burner.kill()
        return found

    def checks(self, cards: int) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        if self.on_cards:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(cards)))
        began = time.monotonic()
        command = [sys.executable, "-c", CHECKS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        told = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-500:]
        return {"seconds": round(time.monotonic() - began, 1), "checks": told}

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
        return found | self.beside_alone(steps) | ({} if again == 0 else {"log": tail(layout)})

    def trial(self) -> dict[str, Any]:
        """What `placement: auto` decides here, and how long that takes."""
        layout = self.root("trial", "auto")
        began = time.monotonic()
        code = self.start(layout, 1, "place").finish(LIMIT_S)
        said = events(layout, "placement")
        told = {key: said[0][key] for key in ("mode", "processes", "why")} if said else {"log": tail(layout)}
        return {"verdict": code, "seconds": round(time.monotonic() - began, 1), **told}


RUNS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "single": lambda bench: bench.plain("single", "single"),
    "ddp": lambda bench: bench.plain("ddp", "ddp"),
    "ddp_host": lambda bench: bench.plain("ddp_host", "ddp", HOST_ONLY),
    "split": lambda bench: bench.plain("split", "single", micro_batch_size=4),
    "share2": lambda bench: bench.share(2),
    "share4": lambda bench: bench.share(4),
    "share8": lambda bench: bench.share(8),
    "auto_map": lambda bench: bench.plain("auto_map", "auto_map"),
    "killed": lambda bench: bench.disturbed("killed", signal.SIGKILL),
    "hung": lambda bench: bench.disturbed("hung", signal.SIGSTOP),
    "trial": Bench.trial,
    "preflight": Bench.preflight,
}


def forex_rows(stage: Stage, rows: str, count: int) -> Iterator[dict[str, Any]]:
    """`count` rows of the example's; the long ones ask for several runs of rates and answer them one after another."""
    sys.path.insert(0, str(FOREX))
    import build as forex

    rng = random.Random(0)
    parts = [1 if rows == "ecb" else max(1, min(5, round(rng.lognormvariate(0.7, 0.6)))) for _ in range(count)]
    kind = stage.lower()
    made = iter(forex.build(*((sum(parts), 0) if kind == "sft" else (0, sum(parts))), 0, think=True)[f"{kind}.jsonl"])
    for n in parts:
        several = list(itertools.islice(made, n))
        yield {
            column: [{"role": turns[0]["role"], "content": "\n\n".join(row[column][0]["content"] for row in several)}]
            for column, turns in several[0].items()
            if column != "date"
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
    parser.add_argument("--rows", default="long", choices=["ecb", "long"])
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
    stage, on_cards = Stage(args.stage.upper()), torch.cuda.device_count() > 0
    bench = Bench(args.work, args.shape, args.cards, stage, args.steps, args.rows, on_cards)
    told = {"shape": args.shape, "stage": stage, "cards": args.cards, "rows": args.rows}
    print(json.dumps({**told, **dict(machine())}), flush=True)
    for run in args.runs or RUNS:
        print(json.dumps({"run": run, **RUNS[run](bench)}), flush=True)


if __name__ == "__main__":
    main()
