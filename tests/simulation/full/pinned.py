"""Seeds that once failed, each with the change that mended it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pinned:
    seed: int
    mended_by: str  # subject of the commit
    what: str


PINNED: tuple[Pinned, ...] = ()
