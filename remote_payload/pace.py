"""When a stage will be over, from its tokens: rows differ in length, and so do steps of packed ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from remote_payload.contract import JobFile, Prepared, Stage


@dataclass
class Pace:
    """Of one life of a stage that takes `total` tokens in all."""

    total: float
    start: tuple[float, float] | None = None  # (seconds, tokens) at the end of the first step, which warms up

    def eta_s(self, at_s: float, tokens: float) -> float | None:
        """Seconds to the stage's last step, when at `at_s` so many tokens are trained; None at the first step."""
        if self.start is None:
            self.start = at_s, tokens
            return None
        since_s, since = self.start
        return max(0.0, self.total - tokens) * (at_s - since_s) / (tokens - since)


def planned_tokens(prepared: Prepared, job: JobFile, stage: Stage) -> float:
    """Tokens of all steps of `stage`; where they end within an epoch, as many of it as so many average rows have."""
    kept = prepared.kept[stage]
    epochs, begun = divmod(prepared.steps[stage], math.ceil(kept / job.batch_size))
    return prepared.tokens[stage] * (epochs + begun * job.batch_size / kept)
