"""TRL's trainers on packed steps: the loader's batch is one optimizer step, and its micro-batches are run here.

So the number of forwards may differ from step to step while the optimizer sees the same sequences, and a checkpoint's
step number alone says where the data goes on. Loss, metrics, optimizer and saving stay the libraries' own.

Ranks differ in how many forwards they make and in how many sequences each has. So they exchange nothing but gradients
before a step is over; what is logged is then gathered once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from pyarrow import compute
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

from remote_payload import collective
from remote_payload.head import add_packed_head
from remote_payload.shares import FairShares


class WholeSteps(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """Mixed into a trainer before TRL's class."""

    own_tokens = 0  # of the step so far, on this rank

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

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        """The same rows in the same steps for any number of ranks, shared out by their tokens."""
        ranks = self.accelerator.num_processes
        if ranks == 1:
            return super()._get_train_sampler(train_dataset)
        # What accelerate makes of the sampler above.
        drawn = SeedableRandomSampler(self.train_dataset, data_seed=self.args.data_seed)
        return FairShares(drawn, row_lengths(self.train_dataset), ranks, ranks * self.args.train_batch_size)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Only this rank's, from the host: asking the card, or the others, would wait for the whole backward and leave
        the card idle until the optimizer's work is on its way."""
        self.own_tokens += inputs["input_ids"].numel()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.state.num_input_tokens_seen += collective.total(self.own_tokens)
        self.own_tokens = 0
        super().log(logs, start_time)


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
            logs |= {"entropy": entropy / trained, "mean_token_accuracy": right / trained}
        super().log(logs, start_time)


class PackedDPO(WholeSteps, DPOTrainer):
    """DPOTrainer on packing.PairSteps, from pairs that are ids already."""

    weights: tuple[float, ...] = ()  # of the step's micro-batches so far: their shares of this rank's pairs

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The mean over a micro-batch's pairs, by its share of the step's pairs: together, the mean over the step."""
        share = inputs.pop("share")
        self.weights += (share,)
        with ungathered(self.accelerator):
            return super().compute_loss(model, inputs, *args, **kwargs) * share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's figures of the step, of all ranks, whose shares are equal."""
        if self.weights:
            figures = self._metrics["train"]
            del figures["num_tokens"]  # this rank's; the trainer's own count has those of all
            own = [numpy.dot(self.weights, figures[name]) for name in sorted(figures)]
            for name, value in zip(sorted(figures), collective.mean(own), strict=True):
                figures[name] = [value]
            self.weights = ()
        super().log(logs, start_time)


@contextmanager
def ungathered(accelerator: Accelerator) -> Iterator[None]:
    """Within it, TRL's figures are this rank's: the others have forwards of other sizes, and another number of them."""
    accelerator.gather = accelerator.gather_for_metrics = lambda own: own
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def row_lengths(dataset: Dataset) -> list[int]:
    """Tokens of every row, in all its columns of ids."""
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    lengths: list[int] = sum(compute.list_value_length(dataset.data[name]).to_numpy() for name in columns).tolist()
    return lengths
