"""One line of the preflight's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """Whether this machine has what `name` stands for, and the figures it is judged by."""

    name: str
    ok: bool
    detail: str
