"""The first event of every life of a training: on what it runs, with what, and which training it is."""

from __future__ import annotations

import re

import torch

from remote_payload import versions
from remote_payload.cards import DRIVER
from remote_payload.fingerprint import Fingerprint
from remote_payload.progress import Events
from remote_payload.ranks import Rank
from remote_payload.speed import Way


def hello(events: Events, mark: Fingerprint, way: Way) -> None:
    """Said once the model is loaded, since what makes it fast depends on it, and by the first rank for all."""
    rank = Rank.own()
    if rank.is_first:
        events.emit(
            "hello",
            versions=versions.installed(),
            gpus=[torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())],
            driver=driver_version(DRIVER.read_text()) if DRIVER.exists() else None,
            processes=rank.size,
            levers=way.levers,
            plain=way.why_plain,
            fingerprint=mark.digest,
        )


def driver_version(told: str) -> str | None:
    """Of /proc/driver/nvidia/version, whose first number with dots it is; None for another text."""
    found = re.search(r"\b\d+(\.\d+)+\b", told)
    return found[0] if found else None
