"""A Vast.ai over real HTTP on loopback that answers what each test writes down."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.settings import ApiKey

KEY = ApiKey("secret-key-0123", "a test")
TIME_SCALE = 500.0

ACCOUNT = ("GET", "/api/v0/users/current/")
LIST = ("GET", "/api/v1/instances/")
SEARCH = ("POST", "/api/v0/bundles/")
ASK = ("PUT", "/api/v0/asks/111/")
ONE = "/api/v0/instances/7/"

ME = {"id": 5, "email": "me@example.org", "credit": 12.5, "balance": 0}


@dataclass
class Said:
    """One reply of the scripted market; a `body` that is no text is sent as JSON."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class ScriptedMarket:
    """Answers each endpoint with its replies in turn, the last one for ever; a function is asked for its reply."""

    url: str = ""
    replies: dict[tuple[str, str], list[Said | Callable[[Seen], Said]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    seen: list[Seen] = field(default_factory=list)

    def answers(self, endpoint: tuple[str, str], *replies: Said | Callable[[Seen], Said]) -> None:
        self.replies[endpoint] = list(replies)

    def asked(self, endpoint: tuple[str, str]) -> list[Seen]:
        return [s for s in self.seen if (s.method, s.path) == endpoint]

    async def reply(self, request: Request) -> Response:
        text = await request.body()
        body = json.loads(text) if text else None
        seen = Seen(request.method, request.url.path, dict(request.query_params), body, dict(request.headers))
        self.seen.append(seen)
        replies = self.replies[seen.method, seen.path]
        said = replies.pop(0) if len(replies) > 1 else replies[0]
        said = said if isinstance(said, Said) else said(seen)
        text = said.body if isinstance(said.body, str) else json.dumps(said.body)
        return Response(text, said.status, said.headers)


@contextlib.asynccontextmanager
async def served(market: ScriptedMarket) -> AsyncIterator[ScriptedMarket]:
    methods = ["GET", "PUT", "POST", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", market.reply, methods=methods)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.001)
    market.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield market
    server.should_exit = True
    await serving


def page(*ids: Any, token: str | None = None) -> Said:
    return Said(body={"success": True, "instances": [{"id": i} for i in ids], "next_token": token})


BAD_KEY = Said(404, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
RETIRED = Said(410, {"success": False, "error": "deprecated_endpoint", "msg": "use another"})
HTML = Said(200, "<html>maintenance</html>")
