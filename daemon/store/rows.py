"""Rows to frozen records, by field name."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Row

_T = TypeVar("_T")


@cache
def _enums(kind: Any) -> dict[str, type[enum.Enum]]:
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if isinstance(option, type) and issubclass(option, enum.Enum):
                found[name] = option
    return found


def record(kind: type[_T], row: Row[Any]) -> _T:
    """`row` as `kind`; columns that `kind` does not name are left out."""
    values = row._mapping
    enums = _enums(kind)  # type: ignore[arg-type]
    picked = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = values[field.name]
        picked[field.name] = enums[field.name](value) if field.name in enums and value is not None else value
    return kind(**picked)
