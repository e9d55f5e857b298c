"""How long the rows are in tokens, the max_length that fits them, and how many of them it may cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from remote_payload.contract import Stage

SHARES = {"p50": 0.5, "p95": 0.95, "p99.5": 0.995, "max": 1.0}
FITTED = 0.995  # share of a stage's rows that a derived max_length holds whole
STEP = 64  # tokens; a derived max_length is a multiple
LONGEST = 4096  # tokens; what is derived stays below, since memory grows with it
# Share of the rows that may be cut. A cut answer has no end; a cut pair may lose just what tells the two apart.
MAY_CUT = {Stage.SFT: 0.02, Stage.DPO: 0.01}


def spread(lengths: list[int]) -> dict[str, int]:
    """The lengths below which a share of the rows lies, by name."""
    return {name: _quantile(lengths, share) for name, share in SHARES.items()} if lengths else {}


def fitting(stages: Iterable[list[int]], longest: int) -> int:
    """The max_length for rows of these lengths, stage by stage; never above `longest` or LONGEST."""
    fitted = max((_quantile(lengths, FITTED) for lengths in stages if lengths), default=LONGEST)  # none: nothing is cut
    return min(math.ceil(fitted / STEP) * STEP, longest, LONGEST)


def objections(stages: Mapping[Stage, list[int]], max_length: int) -> list[str]:
    """Why so many rows of a stage must not be cut; nothing where it is few enough."""
    found = []
    for stage, lengths in stages.items():
        cut = sum(length > max_length for length in lengths)
        if cut > MAY_CUT[stage] * len(lengths):
            found.append(
                f"{cut} of {len(lengths)} {stage} rows are longer than {max_length} tokens and would lose their end, "
                f"more than the {MAY_CUT[stage]:.0%} that pass: shorten them, raise max_length, or leave it out, "
                "and it fits"
            )
    return found


def _quantile(lengths: list[int], share: float) -> int:
    return sorted(lengths)[math.ceil(share * len(lengths)) - 1]
