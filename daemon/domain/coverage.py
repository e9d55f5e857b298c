"""How far the rows of a stage get: read, kept, trained at least once, truncated. Pure.

Steps times batch says what is reached: 330 steps of 32 rows see 10,560 of 15,300, and nothing in a loss curve tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STAGES = {"SFT": "sft", "DPO": "dpo"}  # and the data set that each trains on


@dataclass(frozen=True)
class Coverage:
    """One stage. `kept` and `truncated` are None until the box has tokenized the rows."""

    stage: str
    read: int
    kept: int | None
    truncated: int | None
    steps: int
    batch_size: int

    @property
    def usable(self) -> int:
        return self.read if self.kept is None else self.kept

    @property
    def trained(self) -> int:
        """At least once: an epoch takes every row before it takes one again."""
        return min(self.usable, self.steps * self.batch_size)

    @property
    def warning(self) -> str | None:
        """What a person would not expect; None when every row that was read is trained."""
        said = []
        if dropped := self.read - self.usable:
            said.append(f"{dropped:,} of {self.read:,} {self.stage} rows have no answer left within max_length")
        if missed := self.usable - self.trained:
            said.append(
                f"{self.steps:,} {self.stage} steps of {self.batch_size:,} rows reach {self.trained:,} of "
                f"{self.usable:,}: {missed:,} rows are never trained"
            )
        return "; ".join(said) or None


def coverage(read: Mapping[str, int], prepared: Mapping[str, Any], batch_size: int) -> list[Coverage]:
    """The stages that have rows. `read`: rows by data set; `prepared`: as in prepared.json, or its steps alone."""
    return [
        Coverage(
            stage=stage,
            read=read[data_set],
            kept=prepared.get("kept", {}).get(stage),
            truncated=prepared.get("truncated", {}).get(stage),
            steps=prepared.get("steps", {}).get(stage, 0),
            batch_size=batch_size,
        )
        for stage, data_set in STAGES.items()
        if data_set in read
    ]
