"""Decide once how this attempt's training stages run, for the placements in which the machine has a say."""

from __future__ import annotations

import os
import sys

import torch

from remote_payload import placement, script
from remote_payload.contract import Exit, JobFile, Stage
from remote_payload.layout import Layout, plan_of
from remote_payload.placement import Placed
from remote_payload.progress import Events
from remote_payload.ranks import WAYS
from remote_payload.trial import Trial, TrialFailed, difference

# Ranks of a machine without cards, where one is the rule; a test, or a demonstration on a CPU, may want more.
CPU_RANKS = "HOMEPORT_CPU_RANKS"


def place(layout: Layout, job: JobFile, events: Events) -> Exit:
    """Raises ScriptFailed: 10 or 31 when `placement: ddp` cannot be had; `auto` takes another one then."""
    cards = torch.cuda.device_count()
    processes = cards or int(os.environ.get(CPU_RANKS, "1"))
    memory = [torch.cuda.get_device_properties(i).total_memory for i in range(cards)]
    fits = placement.fits(weight_bytes(layout), memory)
    placed = placement.without_trial(job.placement, processes, job.batch_size, fits)
    if placed is None:
        placed = tried(layout, job, processes)
    placement.decide(layout, job, placed)
    events.emit("placement", mode=placed.mode, processes=placed.processes, why=placed.why)
    print(f"placement {placed.mode}, {placed.processes} processes: {placed.why}", flush=True)
    return Exit.OK


def tried(layout: Layout, job: JobFile, processes: int) -> Placed:
    """ddp in the first way that trains what one process trains; else what `placement.refused` makes of it."""
    stage = next(stage for stage in (Stage.SFT, Stage.DPO) if plan_of(job, stage))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trial = Trial(layout, job, stage, placement.micro_batch(job.batch_size // processes, job.micro_batch_size, device))
    objections = []
    for way in WAYS:
        try:
            differs = difference(trial.alone, trial.curve(processes, way), device)
        except TrialFailed as failure:
            objections.append(str(failure))
            continue
        if differs is None:
            how = "".join(f" with {name}={value}" for name, value in way.items())
            return Placed("ddp", processes, f"{processes} processes train what one trains{how}, in a trial", way)
        objections.append(f"{processes} processes: {differs}")
        break
    return placement.refused(job.placement, "; ".join(objections))


def weight_bytes(layout: Layout) -> int:
    return sum(file.stat().st_size for file in layout.model.glob("*.safetensors"))


if __name__ == "__main__":
    sys.exit(script.run(None, place))
