"""What pydantic found wrong with a spec, in our words: where, what, what was expected, and which key was meant."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from daemon.domain.spec_yaml import Where

Model = type[BaseModel]

# pydantic's error type -> what to say. `{...}` are its context's names; others are reported in its own words.
WORDS = {
    "missing": "is required",
    "literal_error": "{input} is not known (expected {expected})",
    "int_type": "{input} is not a whole number",
    "float_type": "{input} is not a number",
    "string_type": "{input} is not text (put it in quotes)",
    "bool_type": "{input} is neither true nor false",
    "tuple_type": "{input} is not a list (expected [A, B])",
    "model_type": "{input} is not a table of keys",
    "greater_than": "{input} is too small (expected more than {gt})",
    "greater_than_equal": "{input} is too small (expected {ge} or more)",
    "less_than": "{input} is too large (expected less than {lt})",
    "too_short": "is empty",
    "string_too_short": "is empty",
    "finite_number": "{input} is not a finite number",
}
PATTERNS = {"name": "letters, digits, '.', '_' and '-', at most 63 of them", "tag": "one line of text"}


def problems(error: ValidationError, spec: Model) -> list[tuple[Where, str]]:
    """Every objection with the place it concerns."""
    return [(tuple(found["loc"]), _message(found, spec)) for found in error.errors()]


def _message(found: Any, spec: Model) -> str:
    where = found["loc"]
    if found["type"] == "extra_forbidden":
        return _unknown_key(where, spec)
    if found["type"] == "string_pattern_mismatch":
        return f"{found['input']!r} cannot be used (expected {PATTERNS.get(where[-1], 'other text')})"
    words = WORDS.get(found["type"])
    if words is None:
        return str(found["msg"]).lower()
    return words.format(input=repr(found["input"]), **found.get("ctx", {}))


def _unknown_key(where: Where, spec: Model) -> str:
    """The key that was meant, as far as spelling or another block tell."""
    *parents, key = (str(step) for step in where)
    known = dict(_keys(spec))
    here = known.get(".".join(parents), [])
    if elsewhere := [f"{block}.{key}" if block else key for block, keys in known.items() if key in keys]:
        return f"unknown key here (did you mean {' or '.join(elsewhere)}?)"
    if close := difflib.get_close_matches(key, here, n=1):
        return f"unknown key (did you mean {close[0]}?)"
    return f"unknown key (expected one of {', '.join(sorted(here))})"


def _keys(model: Model, prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Each block by its dotted name, with its keys."""
    yield prefix, list(model.model_fields)
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}.{name}".lstrip("."))
