"""Decide once how this attempt's training stages run, for the placements in which the machine has a say."""

from __future__ import annotations

import os
import sys

import torch

from remote_payload import placement, script
from remote_payload.contract import Exit, JobFile
from remote_payload.layout import Layout
from remote_payload.placement import Placed
from remote_payload.progress import Events

# Ranks of a machine without cards, where one is the rule; a test, or a demonstration on a CPU, may want more.
CPU_RANKS = "HOMEPORT_CPU_RANKS"


def place(layout: Layout, job: JobFile, events: Events) -> Exit:
    processes = torch.cuda.device_count() or int(os.environ.get(CPU_RANKS, "1"))
    placement.share(job.batch_size, processes)
    placed = Placed("ddp", processes)
    placement.decide(layout, job, placed)
    events.emit("placement", mode=placed.mode, processes=placed.processes, why=placed.why)
    print(f"placement {placed.mode}, {placed.processes} processes: {placed.why}", flush=True)
    return Exit.OK


if __name__ == "__main__":
    sys.exit(script.run(None, place))
