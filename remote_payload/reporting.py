"""Telling a training to the person's own board as well: TensorBoard files, or W&B.

The package is installed for the job (bootstrap.sh); a key is in the environment of the start that brought it, and
nowhere on this machine's disk. After a reboot there is none, and W&B's files are kept here to be synced by hand.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from remote_payload.contract import REPORTERS, JobFile, Stage
from remote_payload.layout import Layout


def problems(job: JobFile) -> list[str]:
    """Why nothing would be told; asked before anything is trained."""
    if job.report_to is None or importlib.util.find_spec(job.report_to):
        return []
    return [f"report_to: {job.report_to} is not installed on this machine"]


def environment(layout: Layout, job: JobFile, stage: Stage, own: Mapping[str, str]) -> dict[str, str]:
    """What the reporters' own libraries read, beside `own`, the environment of this start."""
    if job.report_to is None:
        return {}
    key = REPORTERS[job.report_to].key
    return {
        "TENSORBOARD_LOGGING_DIR": str(layout.tensorboard(stage)),
        "WANDB_PROJECT": "homeport",
        "WANDB_NAME": f"{job.name} {job.job} {stage}",
        "WANDB_DIR": str(layout.stage(stage)),
        "WANDB_MODE": "online" if key is None or key in own else "offline",
    }
