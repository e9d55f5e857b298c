"""The paths under /v1. Readings come straight from the database, read-only; everything else is asked of `Commands`.

Readings are plain functions: Starlette runs them in its threads, so that a slow disk never stops the daemon's loop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from daemon.api.messages import Commands, ErrorBody, error_body, http_status
from daemon.domain import units
from daemon.errors import HomeportError, Refused, SpecError, from_system
from daemon.settings import Settings
from daemon.store.readonly import ReadModel

LARGEST = (1 << 63) - 1  # what SQLite holds
MAX_BODY = 4 << 20  # bytes: a spec is a few kilobytes

log = structlog.get_logger()


def application(settings: Settings, commands: Commands, version: str) -> Starlette:
    """Every route, bound to this daemon's database and commands."""
    model = ReadModel(settings.paths.database, settings.paths.job_folders)
    reading, asking = _Reading(model, settings, version), _Asking(model, commands)
    return Starlette(
        routes=[
            Route("/v1/health", reading.health),
            Route("/v1/jobs", reading.jobs, methods=["GET"]),
            Route("/v1/jobs", asking.submit, methods=["POST"]),
            Route("/v1/jobs/{ref}", reading.job),
            Route("/v1/jobs/{ref}/events", reading.events),
            Route("/v1/jobs/{ref}/metrics", reading.metrics),
            Route("/v1/jobs/{ref}/log", reading.log),
            Route("/v1/jobs/{ref}/abandon", asking.abandon_terms, methods=["GET"]),
            Route("/v1/jobs/{ref}/{verb}", asking.steer, methods=["POST"]),
            Route("/v1/leases", reading.leases),
            Route("/v1/leases/{instance:int}/write-off", asking.write_off, methods=["POST"]),
            Route("/v1/leases/{instance:int}/adopt", asking.adopt, methods=["POST"]),
            Route("/v1/instances/{instance:int}/fetch", asking.fetch, methods=["POST"]),
            Route("/v1/transfers/{number:int}", asking.transfer, methods=["GET"]),
            Route("/v1/plan", asking.plan, methods=["POST"]),
            Route("/v1/offers", asking.offers, methods=["POST"]),
            Route("/v1/doctor", asking.doctor, methods=["POST"]),
        ],
        exception_handlers={HomeportError: _refused, OSError: _disk_refused, Exception: _failed},  # type: ignore[dict-item]  # ours is narrower
    )


class _Reading:
    """GET: the database as it is now."""

    def __init__(self, model: ReadModel, settings: Settings, version: str) -> None:
        self.model = model
        self.settings = settings
        self.version = version

    def health(self, request: Request) -> Response:
        about = {"version": self.version, "demo": self.settings.demo, "market": self.settings.market_url}
        who = {"schema": "homeport.health/1", "pid": os.getpid()}
        return JSONResponse({**who, **about, "money": self.model.money()})

    def jobs(self, request: Request) -> Response:
        return JSONResponse(self.model.jobs())

    def job(self, request: Request) -> Response:
        return JSONResponse(self.model.job(request.path_params["ref"]))

    def events(self, request: Request) -> Response:
        return JSONResponse(self.model.events(request.path_params["ref"], _number(request, "after")))

    def metrics(self, request: Request) -> Response:
        return JSONResponse(self.model.metrics(request.path_params["ref"], _number(request, "after")))

    def log(self, request: Request) -> Response:
        return JSONResponse(self.model.log(request.path_params["ref"], _number(request, "offset")))

    def leases(self, request: Request) -> Response:
        return JSONResponse(self.model.leases())


class _Asking:
    """POST: something is to happen, or somebody outside has to be asked."""

    def __init__(self, model: ReadModel, commands: Commands) -> None:
        self.model = model
        self.commands = commands
        # Verb -> what it asks for: (job id, who, the request's body).
        self.verbs: Mapping[str, Callable[[str, str, Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "hold": lambda job, by, body: commands.hold(job, by),
            "resume": lambda job, by, body: commands.resume(job, by),
            "retry": lambda job, by, body: commands.retry(job, by, _optional_text(body, "stage")),
            "accept": lambda job, by, body: commands.accept(
                job, by, _optional_text(body, "level"), _optional_text(body, "confirm")
            ),
            "cancel": lambda job, by, body: commands.cancel(
                job, by, body.get("discard") is True, _optional_integer(body, "confirm")
            ),
            "pull": lambda job, by, body: commands.pull(job, _text(body, "checkpoint"), _text(body, "to")),
            "abandon": lambda job, by, body: commands.abandon(job, by, _optional_integer(body, "confirm")),
        }

    async def submit(self, request: Request) -> Response:
        body = await _body(request)
        answer = await self.commands.submit(
            _text(body, "text"), _text(body, "source"), _text(body, "folder"), _text(body, "request_id")
        )
        return JSONResponse(answer, status_code=201 if answer["created"] else 200)

    async def plan(self, request: Request) -> Response:
        body = await _body(request)
        return JSONResponse(await self.commands.plan(_text(body, "text"), _text(body, "source"), _text(body, "folder")))

    async def offers(self, request: Request) -> Response:
        return JSONResponse(await self.commands.offers(_filters(await _body(request))))

    async def doctor(self, request: Request) -> Response:
        return JSONResponse(await self.commands.doctor())

    async def steer(self, request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in self.verbs:
            raise SpecError([f"no verb {verb!r}; known are {', '.join(self.verbs)}"])
        body = await _body(request)
        return JSONResponse(await self.verbs[verb](self._resolve(request), _text(body, "by"), body))

    async def abandon_terms(self, request: Request) -> Response:
        return JSONResponse(await self.commands.abandon_terms(self._resolve(request)))

    async def write_off(self, request: Request) -> Response:
        body = await _body(request)
        instance = _instance(request)
        confirm = _optional_integer(body, "confirm")
        return JSONResponse(await self.commands.write_off(instance, _text(body, "by"), confirm))

    async def adopt(self, request: Request) -> Response:
        body = await _body(request)
        text, source, folder = (_text(body, key) for key in ("text", "source", "folder"))
        instance = _instance(request)
        return JSONResponse(await self.commands.adopt(instance, text, source, folder, _text(body, "by")))

    async def fetch(self, request: Request) -> Response:
        body = await _body(request)
        pattern, to, host_key = _text(body, "pattern"), _text(body, "to"), _optional_text(body, "host_key")
        return JSONResponse(await self.commands.fetch(_instance(request), pattern, to, host_key))

    async def transfer(self, request: Request) -> Response:
        return JSONResponse(await self.commands.transfer(request.path_params["number"]))

    def _resolve(self, request: Request) -> str:
        return self.model.resolve(request.path_params["ref"])


async def _refused(request: Request, error: HomeportError) -> Response:
    return JSONResponse({"error": error_body(error)}, status_code=http_status(error))


async def _disk_refused(request: Request, error: OSError) -> Response:
    """A full disk, most often. Who asked is told of the file, and nothing else."""
    log.error("api.failed", path=request.url.path, exc_info=error)
    return await _refused(request, from_system(error))


async def _failed(request: Request, error: Exception) -> Response:
    """An error nobody expected: logged whole here, named in one line there. Starlette raises it again for the log."""
    log.error("api.failed", path=request.url.path, exc_info=error)
    message = f"internal error: {type(error).__name__}"
    body = ErrorBody(message=message, hint="the trace is in the daemon's log", exit_code=1, problems=[])
    return JSONResponse({"error": body}, status_code=500)


async def _body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises SpecError when it is none, Refused when it is too large."""
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise Refused(f"a request is at most {MAX_BODY} bytes")
    try:
        body = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:  # not JSON, or brackets without an end
        raise SpecError([f"request: not JSON ({error})"]) from error
    if not isinstance(body, dict):
        raise SpecError(["request: expected a JSON object"])
    return body


def _text(body: Mapping[str, Any], key: str) -> str:
    if not isinstance(value := body.get(key), str):
        raise SpecError([f"request: {key} must be a string"])
    return value


def _optional_text(body: Mapping[str, Any], key: str) -> str | None:
    return None if body.get(key) is None else _text(body, key)


def _optional_integer(body: Mapping[str, Any], key: str) -> int | None:
    value = body.get(key)
    if value is not None and (type(value) is not int or abs(value) > LARGEST):
        raise SpecError([f"request: {key} must be an integer of at most {LARGEST}"])
    return value


def _number(request: Request, key: str) -> int:
    try:
        number = int(request.query_params.get(key, "0"))
    except ValueError as error:
        raise SpecError([f"{key}: {error}"]) from error
    if abs(number) > LARGEST:
        raise SpecError([f"{key}: {key} must be at most {LARGEST}"])
    return number


def _instance(request: Request) -> int:
    instance: int = request.path_params["instance"]
    if instance > LARGEST:
        raise SpecError([f"instance: no id is over {LARGEST}"])
    return instance


def _filters(body: Mapping[str, Any]) -> dict[str, Any]:
    """As Commands.offers takes them. Raises SpecError naming the key."""
    gpu, count, price = body.get("gpu"), _optional_integer(body, "count"), _optional_text(body, "max_price")
    if gpu is not None and not (isinstance(gpu, list) and all(isinstance(name, str) for name in gpu)):
        raise SpecError(["request: gpu must be a list of strings"])
    if count is not None and count < 1:
        raise SpecError(["request: count must be 1 or more"])
    if price is not None:
        try:
            units.dollars_per_hour(price)
        except ValueError as error:
            raise SpecError([f"request: max_price: expected {error}"]) from error
    given = {"gpu": gpu, "count": count, "max_price": price}
    return {name: value for name, value in given.items() if value is not None}
