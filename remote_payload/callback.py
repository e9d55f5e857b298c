"""The trainer's one callback: reports every step, stops at nonsense, seals checkpoints, obeys a request to stop."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remote_payload import checkpoints, collective, gates
from remote_payload.contract import JobFile, Stage
from remote_payload.fingerprint import Fingerprint
from remote_payload.layout import Layout
from remote_payload.pace import Pace, planned_tokens
from remote_payload.progress import Events
from remote_payload.script import ScriptFailed

SHOWN = ("rewards/", "logps/", "mean_token")  # further figures of a step, by how their names begin
NEW_PAIRS = 0.25  # share of the first epoch's steps, the last ones, by which DPO is judged


class Progress(TrainerCallback):
    """For one life of a stage; what earlier lives logged is in the trainer's own history."""

    def __init__(self, layout: Layout, job: JobFile, stage: Stage, events: Events, fingerprint: Fingerprint) -> None:
        self.layout = layout
        self.job = job
        self.stage = stage
        self.events = events
        self.fingerprint = fingerprint
        self.pace = Pace(0)
        self.tokens = 0
        self.at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pace = Pace(planned_tokens(self.layout.read_prepared(), self.job, self.stage))
        self.at = time.monotonic()
        self.tokens = state.num_input_tokens_seen

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary after the last step
        if not state.is_world_process_zero:
            return  # every rank logs the loss of all
        now, tokens = time.monotonic(), int(state.num_input_tokens_seen)
        speed = (tokens - self.tokens) / (now - self.at)
        self.at, self.tokens = now, tokens
        eta_s = self.pace.eta_s(now, tokens)
        self.events.emit(
            "step",
            step=state.global_step,
            total=state.max_steps,
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm"),
            lr=logs.get("learning_rate"),
            tokens=tokens,
            tok_s=round(speed, 1),
            eta_s=None if eta_s is None else round(eta_s, 1),
            epoch=logs.get("epoch"),
            **peak_memory(),
            **{name: value for name, value in logs.items() if name.startswith(SHOWN)},
        )
        print(
            f"{self.stage} {state.global_step}/{state.max_steps}: loss {logs['loss']:.4f}, "
            f"learning rate {logs.get('learning_rate', 0.0):.2e}, {speed:.0f} tokens/s",
            flush=True,
        )
        self._judge_step(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if collective.any_says(self.layout.stop.exists()):
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        collective.wait_for_all()  # each rank has written its own random state into the folder
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"{checkpoints.PREFIX}{state.global_step}"
        sealed = checkpoints.seal(folder, self.stage, state.global_step, self.fingerprint)
        checkpoints.prune(folder.parent, self.job.checkpoint_keep)
        path = folder.relative_to(self.layout.root).as_posix()
        self.events.emit("checkpoint", step=state.global_step, path=path, bytes=sum(f.size for f in sealed.files))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judged once the last step was saved: what the stage came to is kept, whatever the gates say of it."""
        if not state.is_world_process_zero or state.global_step < state.max_steps:
            return
        history = steps_of(state)
        if self.stage is Stage.SFT and self.job.start_from is None:  # an earlier adapter may know these rows already
            fall = gates.loss_fall([line["loss"] for line in history], gates.FLOORS[Stage.SFT])
            self._hold("loss_fall", fall, len(history))
        if self.stage is Stage.DPO and self.job.dpo:
            new = new_pairs(history)
            for name, value in pair_values(new, self.job.dpo.beta).items():
                self._hold(name, value, len(new) * self.job.batch_size)

    def _judge_step(self, state: TrainerState) -> None:
        history = steps_of(state)
        for name, value in step_values(self.stage, history).items():
            self._hold(name, value, len(history), tell=False)
        if self.stage is Stage.DPO and state.global_step == 1:
            self._hold("first_dpo_loss", abs(history[-1]["loss"] - gates.LN_2), 1)

    def _hold(self, name: str, value: float, count: int, tell: bool = True) -> None:
        """Raises ScriptFailed with the gate's own code; `tell` also what passed."""
        verdict = gates.judge(name, value, count, self.job.gates)
        if verdict and (tell or not verdict.ok):
            self.events.emit("gate", **asdict(verdict))
        if verdict and not verdict.ok:
            raise ScriptFailed(gates.GATES[name].code, str(verdict))


def peak_memory() -> dict[str, float]:
    """The most that torch's allocator held since it was asked last, on the fullest card of this process; nothing
    without cards. It is the host's own count, so asking does not wait for the cards."""
    cards = range(torch.cuda.device_count())
    peaks = [torch.cuda.max_memory_allocated(card) for card in cards]
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)
    return {"mem_gb": round(max(peaks) / 1e9, 2)} if peaks else {}


def steps_of(state: TrainerState) -> list[dict[str, float]]:
    """What every step logged so far, those before a resume too."""
    return [line for line in state.log_history if "loss" in line]


def step_values(stage: Stage, history: list[dict[str, float]]) -> dict[str, float]:
    """What the gates of every step judge, from all steps logged so far; finite first, the others build on numbers."""
    losses = [line["loss"] for line in history]
    norms = [line.get("grad_norm", 0.0) for line in history]
    return {
        "finite": abs(losses[-1]) + abs(norms[-1]),
        "loss_not_zero": losses[-1],
        "loss_rise": gates.loss_rise(losses, gates.FLOORS[stage]),
        "grad_norm": gates.norm_rise(norms),
    }


def new_pairs(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The last steps of the first epoch: each pair in them was scored before anything was learned from it."""
    first = [line for line in history if line["epoch"] <= 1]
    return first[-max(1, round(len(first) * NEW_PAIRS)) :]


def pair_values(steps: list[dict[str, float]], beta: float) -> dict[str, float]:
    """What the gates of DPO's last step judge, from the mean figures of `steps`."""

    def mean(name: str) -> float:
        return fmean(line[name] for line in steps)

    return {
        "reward_accuracy": mean("rewards/accuracies"),
        "reward_margin": mean("rewards/margins"),
        "chosen_fall": gates.chosen_fall(mean("rewards/chosen"), mean("logps/chosen"), beta),
    }
