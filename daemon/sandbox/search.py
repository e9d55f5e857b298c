"""The market's query language, applied to the offers of the catalogue. Pure.

A query is ``{"<column>": {"<op>": value}, "order": [[column, "asc"|"desc"]], "limit", "type", "allocated_storage"}``.
The official client sends most numbers as strings, so an operand is read as whatever the column holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

MAX_OFFERS = 64  # however large a `limit` is asked for
DEFAULT_DISK_GB = 8.0

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda value, among: value in among,
    "notin": lambda value, among: value not in among,
}

# Words a query may use that are no columns of an offer: the column they stand for, and the column's value for "true".
SCOPES: dict[str, tuple[str, Any]] = {
    "verified": ("verification", "verified"),
    "datacenter": ("hosting_type", 1),
}

NOT_FILTERS = frozenset({"order", "limit", "type", "allocated_storage", "select_cols", "q", "resource_type"})


class BadQuery(ValueError):
    """The query names an unknown operator or compares things that do not compare."""


def terms(query: dict[str, Any]) -> tuple[float, bool]:
    """What changes the price columns: disk in GB and whether interruptible prices are wanted."""
    return float(query.get("allocated_storage") or DEFAULT_DISK_GB), query.get("type") in ("bid", "interruptible")


def select(offers: Iterable[dict[str, Any]], query: dict[str, Any]) -> list[dict[str, Any]]:
    """The offers the query asks for, in its order, at most `MAX_OFFERS`. Raises BadQuery."""
    found = [offer for offer in offers if _matches(offer, query)]
    for column, direction in reversed(query.get("order") or [["score", "desc"]]):
        found.sort(key=lambda offer: _sortable(offer.get(column)), reverse=direction == "desc")
    limit = query.get("limit")
    return found[: min(int(limit), MAX_OFFERS) if limit else MAX_OFFERS]


def _matches(offer: dict[str, Any], query: dict[str, Any]) -> bool:
    for name, conditions in query.items():
        if name in NOT_FILTERS:
            continue
        if name == "id":
            return False  # the market matches nothing by `id`; `ask_contract_id` is the column to ask for
        if not isinstance(conditions, dict):
            raise BadQuery(f"{name}: expected an object of operators")
        value, stands_for = offer.get(name), SCOPES.get(name)
        if stands_for is not None:
            value = offer[stands_for[0]] == stands_for[1]
        for op, operand in conditions.items():
            if op not in OPERATORS:
                raise BadQuery(f"{name}: unknown operator {op!r}")
            if value is None:
                return False
            try:
                if not OPERATORS[op](value, _as_held(value, operand)):
                    return False
            except (TypeError, ValueError) as error:
                raise BadQuery(f"{name} {op} {operand!r}: {error}") from error
    return True


def _as_held(value: Any, operand: Any) -> Any:
    """`operand` as the type of the column's `value`."""
    if isinstance(operand, list):
        return [_as_held(value, item) for item in operand]
    if isinstance(value, bool):
        return operand.lower() in ("true", "1") if isinstance(operand, str) else bool(operand)
    if isinstance(value, int | float):
        return float(operand)
    return operand


def _sortable(value: Any) -> tuple[bool, Any]:
    return value is not None, value if isinstance(value, int | float) else str(value)
