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
def _columns(kind: Any) -> tuple[tuple[str, type[enum.Enum] | None], ...]:
    """The fields of `kind` in order, each with its enumeration, if it is one."""
    hints = typing.get_type_hints(kind)
    return tuple((field.name, _enum(hints[field.name])) for field in dataclasses.fields(kind))


def _enum(hint: Any) -> type[enum.Enum] | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, enum.Enum)), None)


def record(kind: type[_T], row: Row[Any]) -> _T:
    """`row` as `kind`; columns that `kind` does not name are left out."""
    values = row._mapping
    picked = {}
    for name, enumeration in _columns(kind):  # type: ignore[arg-type]
        value = values[name]
        picked[name] = value if enumeration is None or value is None else enumeration(value)
    return kind(**picked)
