"""TRL's trainers on packed steps: the loader's batch is one optimizer step, and its micro-batches are run here.

So the number of forwards may differ from step to step while the optimizer sees the same sequences, and a checkpoint's
step number alone says where the data goes on. Loss, metrics, optimizer and saving stay the libraries' own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

from remote_payload.head import add_packed_head


class WholeSteps(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Mixed into a trainer before TRL's class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_packed_head(self.model.get_base_model())
        self.model.train()

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward of every micro-batch; ranks exchange gradients once, in the last one."""
        if not self.model.training:  # telling every module takes longer than their first layers' work
            model.train()
        batches = inputs["micro_batches"]
        losses = []
        for i, batch in enumerate(batches):
            alone = nullcontext() if i == len(batches) - 1 else self.accelerator.no_sync(model)
            with alone:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Alone, a process knows its tokens without asking the card, which would wait for the whole backward."""
        if self.accelerator.num_processes > 1:
            super()._track_num_input_tokens(inputs)
        else:
            self.state.num_input_tokens_seen += inputs["input_ids"].numel()


class PackedSFT(WholeSteps, SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """SFTTrainer on packing.SftSteps.

    The loss is TRL's. What TRL would read of every micro-batch for the log stays on the card until the step is logged:
    reading it between forward and backward keeps the card waiting.
    """

    tallies: torch.Tensor | None = None  # of the step so far: trained tokens, entropy, how many were likeliest

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        found = model(**inputs, fused_lm_head=True)
        sums = torch.stack([x.sum().float() for x in (found.label_mask, found.entropy, found.is_top1)])
        self.tallies = sums if self.tallies is None else self.tallies + sums
        # The gradients of the ranks are averaged, and the count is of them all.
        return -found.log_probs.sum() / num_items_in_batch * self.accelerator.num_processes

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.tallies is not None:
            trained, entropy, right = self.accelerator.reduce(self.tallies).tolist()
            self.tallies = None
            tokens = self.state.num_input_tokens_seen
            logs |= {"entropy": entropy / trained, "mean_token_accuracy": right / trained, "num_tokens": float(tokens)}
        super().log(logs, start_time)


class PackedDPO(WholeSteps, DPOTrainer):
    """DPOTrainer on packing.PairSteps, from pairs that are ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The mean over a micro-batch's pairs, by its share of the step's pairs: together, the mean over the step."""
        share = inputs.pop("share")
        return super().compute_loss(model, inputs, *args, **kwargs) * share
