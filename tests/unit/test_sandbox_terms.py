"""What a create may ask for: the market's limits on what it takes, in its words."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.sandbox.provider import MAX_ENV, MAX_ENV_TOTAL, MAX_LABEL_AT_CREATE, MAX_SCRIPT, Refusal, terms

BODY: dict[str, Any] = {"image": "any/image", "disk": 20}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, None),
        ({"image": ""}, "image is required"),
        ({"env": ["A=1"]}, "env must be an object"),
        ({"env": {"A": "x" * (MAX_ENV - 2)}}, None),
        ({"env": {"A": "x" * (MAX_ENV - 1)}}, "a variable of env is longer"),
        ({"env": {f"A{number:03}": "x" * 123 for number in range(MAX_ENV_TOTAL // 128)}}, None),
        ({"env": {f"A{number:03}": "x" * 123 for number in range(MAX_ENV_TOTAL // 128 + 1)}}, "in all"),
        ({"onstart": "x" * MAX_SCRIPT}, None),
        ({"onstart": "x" * MAX_SCRIPT, "args_str": "y"}, "args and onstart are longer"),
        ({"label": "x" * MAX_LABEL_AT_CREATE}, None),
        ({"label": "x" * (MAX_LABEL_AT_CREATE + 1)}, "label is longer"),
        ({"disk": 0.5}, "disk must be at least"),
    ],
)
def test_what_a_create_may_ask_for(asked: dict[str, Any], said: str | None) -> None:
    """Up to its limits everything is taken; what is over one is refused as invalid, and named."""
    if said is None:
        assert terms(BODY | asked).image == "any/image"
        return
    with pytest.raises(Refusal, match=said) as refused:
        terms(BODY | asked)
    assert refused.value.status == 400
