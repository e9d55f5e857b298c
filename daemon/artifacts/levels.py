"""What one level of verification concludes, and the names of the levels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PRESENCE = "L0 presence"
BYTES = "L1 bytes"
STRUCTURE = "L2 structure"
IDENTITY = "L3 identity"
NUMBERS = "L4 numbers"
BEHAVIOUR = "L5 behaviour"
LONGEST = 500  # characters of a problem, which may quote the file


@dataclass(frozen=True)
class Level:
    """One level's verdict. `numbers` is plain JSON; `problem` is empty when passed; not `ran` is never passed."""

    name: str
    passed: bool
    numbers: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    warnings: tuple[str, ...] = ()
    ran: bool = True

    @property
    def line(self) -> str:
        """For a person: the name and what came of it."""
        return f"{self.name}: {'passed' if self.passed else self.problem}"


def passed(name: str, numbers: dict[str, Any], warnings: tuple[str, ...] = ()) -> Level:
    return Level(name, True, numbers, warnings=warnings)


def failed(name: str, problem: str, numbers: dict[str, Any] | None = None) -> Level:
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in problem)  # it may quote a box
    said = plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}..."
    return Level(name, False, numbers or {}, said)


def not_run(name: str, reason: str) -> Level:
    return Level(name, False, problem=f"not run: {reason}", ran=False)
