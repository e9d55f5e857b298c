"""Seeds that once failed, each with the change that mended it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pinned:
    seed: int
    mended_by: str  # subject of the commit
    what: str


_GONE = "control: confirm an absence by the boot clock"

PINNED: tuple[Pinned, ...] = (
    Pinned(81, _GONE, "I16: the wall clock was set, and one look became 30 seconds"),
    Pinned(176, "control: wake a job that is submitted again", "I23: stored, an error reported: no driver ever"),
    Pinned(1092, _GONE, "I16: the same, an hour ahead"),
)
