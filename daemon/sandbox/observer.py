"""The sandbox's own pages, which no market has: ledger, journal, faults. Tests believe these."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .billing import decimal
from .faults import CATALOGUE, Faults, Moment, Order, UnknownFault
from .instances import Instance
from .ledger import Ledger
from .life import Life
from .provider import Provider, Refusal


class Observer:
    """Routes under /sandbox/, and the hand that strikes hosts."""

    def __init__(self, provider: Provider, life: Life, faults: Faults) -> None:
        self._provider = provider
        self._ledger: Ledger = provider.ledger
        self._life = life
        self._faults = faults

    def routes(self) -> list[Route]:
        return [
            Route("/sandbox/ledger", self.ledger),
            Route("/sandbox/journal", self.journal),
            Route("/sandbox/faults", self.order, methods=["POST"]),
            Route("/sandbox/faults", self.catalogue, methods=["GET"]),
            Route("/sandbox/faults", self.clear, methods=["DELETE"]),
            Route("/sandbox/faults/{id:int}", self.remove, methods=["DELETE"]),
        ]

    async def ledger(self, request: Request) -> Response:
        now = time.time()
        return JSONResponse({"instances": [self._account(i, now) for i in self._ledger.all()]})

    def _account(self, instance: Instance, now: float) -> dict[str, Any]:
        traffic = self._ledger.traffic(instance.id)
        return {
            "id": instance.id,
            "label": instance.label,
            "offer_id": instance.offer_id,
            "created_at": instance.created_at,
            "destroyed_at": instance.destroyed_at,
            "intervals": [
                {"state": i.state, "from": i.start, "to": i.stop} for i in self._ledger.intervals(instance.id)
            ],
            "cost_usd": decimal(self._ledger.cost(instance, now).total),
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
        }

    async def journal(self, request: Request) -> Response:
        return JSONResponse({"requests": list(self._ledger.requests())})

    async def order(self, request: Request) -> Response:
        wish = await request.json()
        try:
            order = self._faults.order(wish)
        except UnknownFault as error:
            raise Refusal(400, "unknown_fault", str(error)) from error
        if order.kind.moment is Moment.HOST and "match" not in wish:
            self.strike_host(order)
            order.count = order.hits = 1
        return JSONResponse({"id": order.id})

    def strike_host(self, order: Order) -> None:
        """Let a fault befall its instance, or every living one when it names none."""
        for instance in self._ledger.existing():
            if instance.destroyed_at is None and order.params["instance"] in (None, instance.id):
                self._strike(instance, order)

    def _strike(self, instance: Instance, order: Order) -> None:
        match order.fault:
            case "reboot":
                self._provider.restart(instance.id, how="rebooting")
            case "offline":
                self._life.host_goes_offline(instance, order.params["seconds"])
            case "ssh_refused":
                self._life.ssh_refuses(instance, order.params["seconds"])
            case "ssh_cut":
                self._life.ssh_is_cut(instance, order.params["after_bytes"])
            case "vanish":
                self._life.row_vanishes(instance, order.params["seconds"])
            case "console_destroy":
                self._provider.destroy(instance.id)

    async def catalogue(self, request: Request) -> Response:
        kinds = [
            {"fault": name, "moment": k.moment, "does": k.does, "params": k.params} for name, k in CATALOGUE.items()
        ]
        orders = [
            {"id": o.id, "fault": o.fault, "match": {"method": o.method, "path": o.path}, "count": o.count,
             "params": o.params, "hits": o.hits}
            for o in self._faults.orders()
        ]  # fmt: skip
        return JSONResponse({"catalogue": kinds, "faults": orders})

    async def remove(self, request: Request) -> Response:
        if not self._faults.remove(request.path_params["id"]):
            raise Refusal(404, "not_found", "no such fault")
        return JSONResponse({"success": True})

    async def clear(self, request: Request) -> Response:
        self._faults.clear()
        return JSONResponse({"success": True})
