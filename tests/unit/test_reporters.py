"""The board that a job names: its package on the machine, its key from our environment, and nothing without one."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.control import reporters
from daemon.domain.spec import JobSpec

KEY = {"WANDB_API_KEY": "secret", "OTHER": "x"}


def spec(report_to: str | None) -> JobSpec:
    block: dict[str, Any] = {"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}, "report_to": report_to}
    return JobSpec.model_validate(block)


@pytest.mark.parametrize(
    ("report_to", "environment", "package", "key", "refused"),
    [
        (None, KEY, None, {}, False),
        ("tensorboard", {}, "tensorboard", {}, False),
        ("wandb", KEY, "wandb", {"WANDB_API_KEY": "secret"}, False),
        ("wandb", {}, "wandb", {}, True),
    ],
)
def test_what_a_board_needs(
    report_to: str | None, environment: dict[str, str], package: str | None, key: dict[str, str], refused: bool
) -> None:
    """One pinned package, the one key that opens it and no other variable; a missing key is refused before renting."""
    asked = spec(report_to)

    assert [pin.split("==")[0] for pin in reporters.pins(asked)] == ([package] if package else [])
    assert reporters.key(asked, environment) == key
    objections = reporters.objections(asked, environment)
    assert [objection.mend for objection in objections] == (["set WANDB_API_KEY"] if refused else [])
