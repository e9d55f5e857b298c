"""The trainer's one callback: reports every step, stops at nonsense, seals checkpoints, obeys a request to stop."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from remote_payload import checkpoints, collective
from remote_payload.contract import Exit, Stage
from remote_payload.fingerprint import Fingerprint
from remote_payload.layout import Layout
from remote_payload.progress import Events
from remote_payload.script import ScriptFailed

FIRST_DPO_LOSS = math.log(2)  # policy and reference are the same model before the first update
FIRST_DPO_TOLERANCE = 0.001


class Progress(TrainerCallback):
    """`losses` holds every loss of this life of the stage, oldest first."""

    def __init__(self, layout: Layout, stage: Stage, events: Events, fingerprint: Fingerprint, keep: int) -> None:
        self.layout = layout
        self.stage = stage
        self.events = events
        self.fingerprint = fingerprint
        self.keep = keep
        self.losses: list[float] = []
        self.tokens = 0
        self.at = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        now = time.monotonic()
        speed = (state.num_input_tokens_seen - self.tokens) / (now - self.at)
        self.at, self.tokens = now, state.num_input_tokens_seen
        self.losses.append(logs["loss"])
        self.events.emit(
            "step",
            step=state.global_step,
            total=state.max_steps,
            loss=logs["loss"],
            grad_norm=logs.get("grad_norm"),
            lr=logs.get("learning_rate"),
            tokens=int(state.num_input_tokens_seen),
            tok_s=round(float(speed), 1),
            epoch=logs.get("epoch"),
            **{name: value for name, value in logs.items() if name.startswith(("rewards/", "logps/", "mean_token"))},
        )
        print(
            f"{self.stage} {state.global_step}/{state.max_steps}: loss {logs['loss']:.4f}, "
            f"learning rate {logs.get('learning_rate', 0.0):.2e}, {speed:.0f} tokens/s",
            flush=True,
        )
        self._gate(state.global_step, logs["loss"], logs.get("grad_norm", 0.0))

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
        checkpoints.prune(folder.parent, self.keep)
        path = folder.relative_to(self.layout.root).as_posix()
        self.events.emit("checkpoint", step=state.global_step, path=path, bytes=sum(f.size for f in sealed.files))

    def _gate(self, step: int, loss: float, grad_norm: float) -> None:
        """Raises ScriptFailed: 40 on a loss that is not a number or exactly 0 (a NaN filtered somewhere looks so),
        42 when DPO does not start from its own reference."""
        if not math.isfinite(loss) or not math.isfinite(grad_norm) or loss == 0.0:
            self.events.emit("gate", name="finite", ok=False, value=loss)
            raise ScriptFailed(Exit.DIVERGED, f"step {step}: loss {loss}, gradient norm {grad_norm}")
        if self.stage is Stage.DPO and step == 1:
            ok = abs(loss - FIRST_DPO_LOSS) <= FIRST_DPO_TOLERANCE
            self.events.emit("gate", name="first_dpo_loss", ok=ok, value=loss, limit=FIRST_DPO_LOSS)
            if not ok:
                raise ScriptFailed(
                    Exit.DPO_GATE,
                    f"the first DPO loss is {loss:.4f}, not ln 2 = 0.6931: the reference is not the SFT model",
                )
