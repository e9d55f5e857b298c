"""What every request passes: ordered faults, the key, the rate limits, the journal - and lost connections.

Each request to the market is journalled once, with its effect, before its reply leaves. The sandbox's own pages under
``/sandbox/`` are no requests to a market: they need the key, but pass no fault and are not journalled.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import words
from .faults import UNASKED, Moment
from .ledger import Ledger
from .limits import Limiter
from .orders import Order, Orders
from .reply import Reply
from .shapes import SHAPES

PUBLIC = re.compile(r"/api/v0/(gpu_names/unique|gpu_types)/?|/sandbox/results/\w+")
OWN_INSTANCE = re.compile(r"/api/v0/instances/(\d+)/?")  # all that the key inside a box may call
HTML = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


class DroppableHTTP(H11Protocol):
    """uvicorn's HTTP/1.1, whose connections can be dropped in the middle of a request, by the client's address."""

    by_client: ClassVar[dict[tuple[str, int], asyncio.Transport]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer: tuple[str, int] = transport.get_extra_info("peername")[:2]
        self.by_client[self._peer] = transport

    @classmethod
    def drop_all(cls) -> None:
        for transport in list(cls.by_client.values()):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.by_client.pop(self._peer, None)
        super().connection_lost(exc)


@dataclass(frozen=True)
class Front:
    """ASGI in front of the routes."""

    app: ASGIApp
    ledger: Ledger
    orders: Orders
    limiter: Limiter | None
    strike: Callable[[Order, int | None], Awaitable[None]]  # what befalls hosts, and which instance was asked about

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        body = await _read(receive)
        scope["state"] = {"effect": "none", "faults": {}}
        if path.startswith("/sandbox/"):
            await _send(self._refused(scope) or await self._ask(scope, body), send)
            return
        struck = self.orders.meet(method, path)
        early = next((order for order in struck if order.kind.moment is Moment.BEFORE), None)
        scope["state"]["faults"] = {order.fault: order.params for order in struck if order.kind.moment is Moment.DURING}
        if early is not None:
            reply = _instead(early)
        else:
            reply = self._refused(scope) or self._limited(scope) or await self._ask(scope, body)
        for order in struck:
            if order.kind.moment in UNASKED:
                await self.strike(order, _concerned(path, scope["state"]["effect"]))
        reply, late_s = _suffered(reply, [order for order in struck if order.kind.moment is Moment.REPLY])
        self.ledger.journal(
            time.time(), method, path, dict(parse_qsl(scope["query_string"].decode())), _readable(body),
            None if reply is None else reply.status, scope["state"]["effect"],
        )  # fmt: skip
        await asyncio.sleep(late_s)
        if reply is None:
            await _drop(scope)
        else:
            await _send(reply, send)

    def _refused(self, scope: Scope) -> Reply | None:
        """Why the key does not open this door, or None."""
        if PUBLIC.fullmatch(scope["path"]):
            return None
        key = _bearer(scope)
        if key is None:
            return words.NO_LOGIN()
        if key == self.ledger.api_key:
            return None
        own = OWN_INSTANCE.fullmatch(scope["path"])
        instance = self.ledger.get(int(own.group(1))) if own else None
        if instance is not None and instance.api_key == key:
            return None
        if any(other.api_key == key for other in self.ledger.existing()):
            return words.NO_PERMISSION()
        return words.bad_key()

    def _limited(self, scope: Scope) -> Reply | None:
        if self.limiter is None:
            return None
        text = self.limiter.refusal(_bearer(scope) or "", scope["method"], scope["path"])
        return None if text is None else Reply.of(429, text, "text/plain")

    async def _ask(self, scope: Scope, body: bytes) -> Reply:
        """The routes' reply, kept back."""
        start: Message = {}
        chunks: list[bytes] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                chunks.append(message.get("body", b""))

        await self.app(scope, receive, keep)
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        return Reply(start["status"], b"".join(chunks), headers)


def _instead(order: Order) -> Reply | None:
    """The reply of a fault that comes before any effect; None: the connection drops."""
    match order.fault:
        case "http_error":
            body = order.params["body"]
            kind = "text/plain" if isinstance(body, str) else "application/json"
            return Reply.of(order.params["status"], body, kind, **order.params["headers"])
        case "html_page":
            return Reply.of(order.params["status"], HTML, "text/html")
        case "bad_key":
            return words.bad_key(order.params["status"])
        case "refusal":
            return words.REFUSALS[order.params["why"]]()
        case _:
            return None


def _suffered(reply: Reply | None, orders: Sequence[Order]) -> tuple[Reply | None, float]:
    """What is left of `reply` after the faults that strike replies (None: it is lost), and how many seconds late."""
    late_s = 0.0
    for order in orders:
        match order.fault:
            case "slow_reply":
                late_s += order.params["seconds"]
            case "reply_lost":
                late_s += order.params["hang_s"]
                reply = None
            case "effect_then_error":
                reply = Reply.of(order.params["status"], order.params["body"], "text/plain")
            case "error_with_contract" if reply is not None:
                reply = _failed_after_all(reply, order.params["status"])
            case "listing" if reply is not None and reply.status == 200:
                reply = SHAPES[order.params["shape"]](json.loads(reply.body))
    return reply, late_s


def _failed_after_all(reply: Reply, status: int) -> Reply:
    """An error that nevertheless names the contract which `reply` told of."""
    told = json.loads(reply.body)
    error = {"success": False, "error": "invalid_args", "msg": "error 400/3467: the instance could not be set up"}
    return Reply.of(status, error | {"new_contract": told["new_contract"]}) if "new_contract" in told else reply


def _concerned(path: str, effect: str) -> int | None:
    """The instance that a request was about: the one in its path, else the one it has created."""
    found = re.search(r"/instances/(?:\w+/)?(\d+)", path) or re.fullmatch(r"created (\d+)", effect)
    return int(found.group(1)) if found else None


async def _drop(scope: Scope) -> None:
    """Lose the connection without a word."""
    if (transport := DroppableHTTP.by_client.get(tuple(scope["client"]))) is not None:  # else the client gave up first
        transport.abort()
    await asyncio.sleep(0)  # lets uvicorn see the loss before this request returns unanswered


async def _read(receive: Receive) -> bytes:
    chunks = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


async def _send(reply: Reply, send: Callable[[Message], Awaitable[None]]) -> None:
    headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _bearer(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if kind.lower() == "bearer" and key.strip() else None
    return None


def _readable(body: bytes) -> Any:
    """A request's body for the journal: JSON if it is JSON, else text."""
    try:
        return json.loads(body) if body else None
    except ValueError:  # the journal keeps what was sent, whatever it was
        return body.decode(errors="replace")
