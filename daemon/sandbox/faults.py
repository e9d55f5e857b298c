"""Faults to order: the catalogue as a table, and the orders waiting for their request.

An order names a fault, the requests it matches (method and shell pattern of the path), how often it strikes, and its
parameters. Faults that befall a host rather than a request strike at once when they match nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class Moment(StrEnum):
    """When a fault acts."""

    BEFORE = "before"  # instead of the request's effect
    DURING = "during"  # the verb or the listing itself goes another way
    REPLY = "reply"  # the effect stands, the reply suffers
    HOST = "host"  # to the instance `instance` (default: every living one), at once or after the matching request


@dataclass(frozen=True)
class Fault:
    """A kind of fault: when it acts, its parameters with their defaults, and what it does."""

    moment: Moment
    does: str
    params: dict[str, Any] = field(default_factory=dict)


CATALOGUE: dict[str, Fault] = {
    "lost_before_effect": Fault(Moment.BEFORE, "the connection drops; nothing was done"),
    "http_error": Fault(Moment.BEFORE, "any status and body instead; nothing was done",
                        {"status": 503, "body": "", "headers": {}}),
    "html_page": Fault(Moment.BEFORE, "a gateway's HTML page instead; nothing was done", {"status": 502}),
    "bad_key": Fault(Moment.BEFORE, "the key is called unknown: 404 auth_error; nothing was done"),
    "double_accept": Fault(Moment.DURING, "a taken offer is rented once more"),
    "late_listing": Fault(Moment.DURING, "the instance created is in no reply for so many seconds", {"seconds": 5.0}),
    "list_lag": Fault(Moment.DURING, "listings leave out instances younger than so many seconds", {"seconds": 5.0}),
    "reply_lost": Fault(Moment.REPLY, "effect, then (after `hang_s`) the connection drops without a reply",
                        {"hang_s": 0.0}),
    "effect_then_error": Fault(Moment.REPLY, "effect, then an error instead of the reply", {"status": 502, "body": ""}),
    "slow_reply": Fault(Moment.REPLY, "effect, then so many seconds until the reply", {"seconds": 2.0}),
    "truncated_list": Fault(Moment.REPLY, "a reply of status 200 whose body ends in the middle"),
    "ssh_refused": Fault(Moment.HOST, "connections to sshd are refused for so many seconds",
                         {"instance": None, "seconds": 5.0}),
    "ssh_cut": Fault(Moment.HOST, "all SSH connections drop once so many more bytes have passed",
                     {"instance": None, "after_bytes": 0}),
    "reboot": Fault(Moment.HOST, "the container restarts: its processes die, its disk stays", {"instance": None}),
    "offline": Fault(Moment.HOST, "the host is disconnected for so many seconds; the work goes on",
                     {"instance": None, "seconds": 5.0}),
    "vanish": Fault(Moment.HOST, "no reply shows the instance for so many seconds; it lives and bills",
                    {"instance": None, "seconds": 5.0}),
    "console_destroy": Fault(Moment.HOST, "somebody destroys the instance in the web console", {"instance": None}),
}  # fmt: skip


class UnknownFault(ValueError):
    """The order names a fault or a parameter the catalogue does not have."""


@dataclass
class Order:
    """One ordered fault. `count` None: until removed."""

    id: int
    fault: str
    method: str
    path: str
    count: int | None
    params: dict[str, Any]
    hits: int = 0

    @property
    def kind(self) -> Fault:
        return CATALOGUE[self.fault]

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is struck; the path's trailing slash does not matter."""
        left = self.count is None or self.hits < self.count
        here = fnmatchcase(path, self.path) or fnmatchcase(path.rstrip("/"), self.path)
        return left and here and fnmatchcase(method, self.method)


class Faults:
    """The orders given so far, and which of them a request meets."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._ids = itertools.count(1)

    def order(self, wish: dict[str, Any]) -> Order:
        """Take an order as posted. Raises UnknownFault."""
        name = str(wish.get("fault"))
        kind = CATALOGUE.get(name)
        given = wish.get("params") or {}
        if kind is None or given.keys() - kind.params.keys():
            raise UnknownFault(f"no fault {name!r} with parameters {sorted(given)}")
        match = wish.get("match") or {}
        count = wish.get("count", 1)
        order = Order(
            id=next(self._ids),
            fault=name,
            method=str(match.get("method", "*")),
            path=str(match.get("path", "*")),
            count=None if count is None else int(count),
            params={**kind.params, **given},
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

    def orders(self) -> list[Order]:
        return list(self._orders.values())
