"""The sandbox's own pages, which no market has: ledger, journal, faults. Tests believe these."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .billing import decimal
from .boxes import Boxes
from .faults import CATALOGUE, Moment
from .instances import Instance
from .ledger import Ledger
from .mishaps import Mishaps
from .orders import Order, Orders, UnknownFault
from .provider import Refusal


class Observer:
    """Routes under /sandbox/."""

    def __init__(self, ledger: Ledger, boxes: Boxes, mishaps: Mishaps, orders: Orders) -> None:
        self._ledger = ledger
        self._boxes = boxes
        self._mishaps = mishaps
        self._orders = orders

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
            "intervals": [{"state": i.state, "from": i.start, "to": i.stop} for i in self._ledger.intervals(instance)],
            "cost_usd": decimal(self._ledger.cost(instance, now).total),
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
        }

    async def journal(self, request: Request) -> Response:
        return JSONResponse({"requests": list(self._ledger.requests())})

    async def order(self, request: Request) -> Response:
        try:
            order = self._orders.take(await request.json())
        except UnknownFault as error:
            raise Refusal(400, "unknown_fault", str(error)) from error
        if order.at_once:
            await self._mishaps.strike(order)
            order.hits = 1
        return JSONResponse({"id": order.id})

    async def catalogue(self, request: Request) -> Response:
        kinds = [{"fault": name, **kind.described} for name, kind in CATALOGUE.items()]
        orders = [
            {"id": o.id, "fault": o.fault, "match": {"method": o.meets.method, "path": o.meets.path},
             "count": o.count, "params": o.params, "hits": self._hits(o)}
            for o in self._orders.all()
        ]  # fmt: skip
        return JSONResponse({"catalogue": kinds, "faults": orders})

    def _hits(self, order: Order) -> int:
        """How often it has struck; what a box carries out strikes when the box says so."""
        return self._boxes.struck(order.id) if order.kind.moment is Moment.BOX else order.hits

    async def remove(self, request: Request) -> Response:
        if not self._orders.remove(request.path_params["id"]):
            raise Refusal(404, "not_found", "no such fault")
        return JSONResponse({"success": True})

    async def clear(self, request: Request) -> Response:
        self._orders.clear()
        return JSONResponse({"success": True})
