"""Who may talk to the daemon. A web page in the user's browser may not, whatever name it resolves to this computer.

The unix socket is protected by its mode; loopback, where there are no unix sockets, by a token in a file of mode 0600.
On both the Host header must be a name of this computer, which stops DNS rebinding, and so must the Origin that a
browser names: no page from elsewhere may ask for anything.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.api.messages import ErrorBody

HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Guard:
    """ASGI middleware. `token` None: the transport itself is protected."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if _without_port(headers.get("host", "")) not in HOSTS:
            await _refuse(421, "this daemon answers to localhost only")(scope, receive, send)
        elif _is_foreign(headers.get("origin")):
            await _refuse(403, "this daemon takes nothing from other pages")(scope, receive, send)
        elif self.token is not None and not _has_token(headers, self.token):
            await _refuse(401, "missing or wrong token")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _is_foreign(origin: str | None) -> bool:
    """Only a browser sends one; `null` is that of a file, a sandboxed frame or a redirect."""
    return origin is not None and _without_port(origin.partition("://")[2]) not in HOSTS


def _without_port(host: str) -> str:
    return host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]


def _has_token(headers: Headers, token: str) -> bool:
    return secrets.compare_digest(headers.get("authorization", "").encode(), f"Bearer {token}".encode())


def _refuse(status: int, message: str) -> JSONResponse:
    return JSONResponse(
        {"error": ErrorBody(message=message, hint="jobctl up", exit_code=4, problems=[])}, status_code=status
    )
