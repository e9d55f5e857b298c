"""The orders waiting for their request: which fault, which requests it strikes, how often, with which parameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from . import shapes, words
from .faults import CATALOGUE, UNASKED, Fault, Requests

# Parameters that name a row of another table.
CHOICES = {"why": words.REFUSALS.keys(), "shape": shapes.SHAPES.keys(), "door": {"direct", "proxy", "both"}}


class UnknownFault(ValueError):
    """The order names a fault, a parameter or a row of a table that there is not."""


@dataclass
class Order:
    """One ordered fault. `count` None: until removed. `at_once`: it waits for no request."""

    id: int
    fault: str
    meets: Requests
    count: int | None
    params: dict[str, Any]
    at_once: bool
    hits: int = 0

    @property
    def kind(self) -> Fault:
        return CATALOGUE[self.fault]

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is struck; the path's trailing slash does not matter."""
        left = self.count is None or self.hits < self.count
        here = fnmatchcase(path, self.meets.path) or fnmatchcase(path.rstrip("/"), self.meets.path)
        return left and not self.at_once and here and fnmatchcase(method, self.meets.method)


class Orders:
    """The orders given so far, and which of them a request meets."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._ids = itertools.count(1)

    def take(self, wish: dict[str, Any]) -> Order:
        """Take an order as posted: {"fault", "match": {"method", "path"}, "count", "params"}. Raises UnknownFault."""
        name = str(wish.get("fault"))
        kind = CATALOGUE.get(name)
        given = wish.get("params") or {}
        if kind is None or given.keys() - kind.params.keys():
            raise UnknownFault(f"no fault {name!r} with parameters {sorted(given)}")
        for param, choices in CHOICES.items():
            if given.get(param, kind.params.get(param)) not in (None, *choices):
                raise UnknownFault(f"{name}: {param} is one of {', '.join(sorted(choices))}")
        match = wish.get("match") or {}
        count = wish.get("count", 1)
        order = Order(
            id=next(self._ids),
            fault=name,
            meets=Requests(str(match.get("method", kind.meets.method)), str(match.get("path", kind.meets.path))),
            count=None if count is None else int(count),
            params={**kind.params, **given},
            at_once=kind.moment in UNASKED and not match,
        )
        self._orders[order.id] = order
        return order

    def meet(self, method: str, path: str) -> list[Order]:
        """The orders that strike this request, each counted as a hit."""
        struck = [order for order in self._orders.values() if order.strikes(method, path)]
        for order in struck:
            order.hits += 1
        return struck

    def remove(self, order_id: int) -> bool:
        return self._orders.pop(order_id, None) is not None

    def clear(self) -> None:
        self._orders.clear()

    def all(self) -> list[Order]:
        return list(self._orders.values())
