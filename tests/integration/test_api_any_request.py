"""The daemon's routes against any request at all: who is let in, and that nothing but an answer comes out."""

from __future__ import annotations

import asyncio
import inspect
import json
import typing
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from scripted import Scripted
from starlette.routing import Route
from stored import NOW, Stored

from daemon import settings
from daemon.api.guard import Guard
from daemon.api.messages import Answer, Checks, Commands, ErrorBody, Offers, Plan, Submitted, Terms
from daemon.api.routes import _Asking, application
from daemon.store.shapes import Events, JobPage, Jobs, Leases, Log, Metrics

TOKEN = "t" * 43
HERE = "http://localhost"
ROUTES = [
    route
    for route in application(settings.load({"HOMEPORT_HOME": "/nowhere"}), cast(Any, Scripted()), "").routes
    if isinstance(route, Route)
]
VERBS = (*_Asking(cast(Any, None), cast(Any, Scripted())).verbs, "{verb}")
CALLS = [
    (method, route.path.replace("{verb}", verb))
    for route in ROUTES
    for method in sorted((route.methods or set()) - {"HEAD"})
    for verb in (VERBS if "{verb}" in route.path else ("",))
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guard, Scripted]]:
    """The real application over a real database with one job, behind the guard of a loopback port."""
    config = settings.load({"HOMEPORT_HOME": str(tmp_path_factory.mktemp("home"))})
    stored = Stored(config.paths.database)
    stored.job("k7f3qd", state="SFT", hold_reason="DISK_FULL", hold_detail="full", hold_since=NOW, hold_by="daemon")
    stored.lease("k7f3qd")
    stored.steps("k7f3qd", "SFT", 1, 3, 9)
    stored.listing()
    commands = Scripted()
    yield Guard(application(config, commands, "0.1.0"), TOKEN), commands


def asked(guard: Guard, method: str, path: str, *, body: bytes = b"", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            return await client.request(method, path, content=body, headers=headers)

    return asyncio.run(send())


def let_in(**headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"} | headers


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/leases", "/v1/jobs/k7f3qd", "/v1/nothing"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": TOKEN}, 401),
        (let_in(Host="evil.example"), 421),
        (let_in(Host="127.0.0.1.evil.example"), 421),
        (let_in(Host="localhost.evil.example:80"), 421),
        (let_in(Host=""), 421),
        (let_in(Origin="https://evil.example"), 403),
        (let_in(Origin="http://localhost.evil.example"), 403),
        (let_in(Origin="null"), 403),
        (let_in(Origin=""), 403),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_who_is_not_let_in(api: Any, path: str, headers: dict[str, str], status: int) -> None:
    """A page that rebinds its name, a page from elsewhere, and whoever does not know the token, on every path alike."""
    for method in ("GET", "POST"):
        assert asked(api[0], method, path, **headers).status_code == status


@pytest.mark.parametrize("origin", [None, "http://localhost:8765", "http://127.0.0.1:1", "http://[::1]:1"])
def test_who_is_let_in(api: Any, origin: str | None) -> None:
    """jobctl, which names no origin, and a page of our own."""
    headers = let_in() if origin is None else let_in(Origin=origin)
    assert asked(api[0], "GET", "/v1/jobs", **headers).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
COMMANDS = {
    name: typing.get_type_hints(method)
    for name, method in inspect.getmembers(Commands, inspect.isfunction)
    if not name.startswith("_")
}
# What a body may name: every parameter of every command, as its message type has it.
TYPES = {name: hint for hints in COMMANDS.values() for name, hint in hints.items() if name != "return"}
KEYS = sorted(TYPES.keys() | {"stage", "gpu", "count", "max_price"})


def right(hint: Any) -> st.SearchStrategy[Any]:
    """A value as the message type has it."""
    made = {str: st.text(max_size=20), int: st.integers(0, 1 << 40), bool: st.booleans(), type(None): st.none()}
    shapes = [shape for shape in typing.get_args(hint) or (hint,) if shape in made]
    return st.one_of(made[shape] for shape in shapes or made)


bodies = st.fixed_dictionaries({key: right(TYPES.get(key)) for key in KEYS})
spoiling = st.lists(st.tuples(st.integers(0, 9), st.just("left out") | json_values), max_size=2)


def spoiled(path: str, body: dict[str, Any], spoils: list[tuple[int, Any]]) -> bytes:
    """`body` with some of what the command of `path` takes missing or of another type."""
    own = sorted(COMMANDS.get(path.rpartition("/")[2].replace("-", "_"), TYPES))
    changed = {own[which % len(own)]: value for which, value in spoils}
    return json.dumps({key: value for key, value in (body | changed).items() if value != "left out"}).encode()


refs = st.sampled_from(["k7f3qd", "k7f", "@last", "zzz", "name-k7f3qd"]) | st.text(min_size=1, max_size=10)
numbers = st.integers(-5, 10**20).map(str) | st.text(max_size=5)


@pytest.mark.parametrize("number", [str(10**20), "-1", "1e9", "", "x"])
@pytest.mark.parametrize("what", ["events?after=", "metrics?after=", "log?offset="])
def test_cursors_beyond_all_measure(api: Any, what: str, number: str) -> None:
    """A cursor is a number that SQLite can hold, or it is refused by its name."""
    reply = asked(api[0], "GET", f"/v1/jobs/k7f3qd/{what}{number}", **let_in())

    assert reply.status_code in (200, 422), reply.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/offers", {"gpu": "H100"}),
        ("/v1/offers", {"gpu": [3]}),
        ("/v1/offers", {"count": 0}),
        ("/v1/offers", {"count": "8"}),
        ("/v1/offers", {"max_price": "NaN"}),
        ("/v1/offers", {"max_price": 3}),
        (f"/v1/leases/{10**20}/write-off", {"by": "me"}),
        (f"/v1/instances/{10**20}/fetch", {"pattern": "*", "to": "/tmp"}),
        ("/v1/leases/1/write-off", {"by": "me", "confirm": 10**20}),
    ],
)
def test_what_no_command_could_use(api: Any, path: str, body: dict[str, Any]) -> None:
    """It is refused at the door, by the name of the key, and no command hears of it."""
    api[1].calls.clear()
    assert asked(api[0], "POST", path, body=json.dumps(body).encode(), **let_in()).status_code == 422
    assert api[1].calls == []


@pytest.mark.parametrize(("method", "path"), CALLS)
@profile(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ref=refs,
    verb=refs,
    number=numbers,
    body=bodies,
    spoils=spoiling,
    junk=st.binary(max_size=60),
    wrong=st.sampled_from(["", "", "", "", "method", "body"]),
)
def test_any_request_is_answered(
    api: Any,
    method: str,
    path: str,
    ref: str,
    verb: str,
    number: str,
    body: dict[str, Any],
    spoils: list[tuple[int, Any]],
    junk: bytes,
    wrong: str,
) -> None:
    """Every call, any reference, verb, number and body: an answer or a named refusal, never an error of ours; and no
    command ever gets an argument of another type than its signature says."""
    guard, commands = api
    sent = junk if wrong == "body" else spoiled(path, body, spoils)
    given = {"{ref}": ref, "{verb}": verb, "{instance:int}": number, "{number:int}": number}
    for placeholder, value in given.items():
        path = path.replace(placeholder, quote(value, safe=""))
    assert "{" not in path, "a route has a part that is not made here"
    if wrong == "method":
        method = "POST" if method == "GET" else "GET"
    commands.calls.clear()

    reply = asked(guard, method, f"{path}?after={quote(number)}&offset={quote(number)}", body=sent, **let_in())

    assert reply.status_code in (200, 201, 401, 404, 405, 409, 422), (path, reply.status_code, reply.text)
    if reply.headers["content-type"] == "application/json" and "error" in reply.json():
        assert reply.json()["error"].keys() == ErrorBody.__annotations__.keys()
    for name, *arguments in commands.calls:
        hints = [hint for key, hint in COMMANDS[name].items() if key != "return"]
        for argument, hint in zip(arguments, hints, strict=False):
            assert fits(argument, hint), (name, argument)


def fits(value: Any, shape: Any) -> bool:
    """Whether `value`, as JSON brought it, is of the message type `shape`: every key, and nothing else."""
    origin, arguments = typing.get_origin(shape), typing.get_args(shape)
    if shape is Any:
        return True
    if origin is typing.Union or type(shape).__name__ == "UnionType":
        return any(fits(value, one) for one in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if typing.is_typeddict(shape):
        hints = typing.get_type_hints(shape)
        return isinstance(value, dict) and value.keys() == hints.keys() and all(fits(value[k], hints[k]) for k in hints)
    if shape is float:
        return isinstance(value, int | float)
    return value is None if shape is type(None) else isinstance(value, shape)


@pytest.mark.parametrize(
    ("method", "path", "shape"),
    [
        ("GET", "/v1/jobs", Jobs),
        ("GET", "/v1/jobs/k7f3qd", JobPage),
        ("GET", "/v1/jobs/k7f3qd/events", Events),
        ("GET", "/v1/jobs/k7f3qd/metrics", Metrics),
        ("GET", "/v1/jobs/k7f3qd/log", Log),
        ("GET", "/v1/leases", Leases),
        ("GET", "/v1/jobs/k7f3qd/abandon", Terms),
        ("POST", "/v1/jobs", Submitted),
        ("POST", "/v1/plan", Plan),
        ("POST", "/v1/offers", Offers),
        ("POST", "/v1/doctor", Checks),
        ("POST", "/v1/jobs/k7f3qd/hold", Answer),
        ("POST", "/v1/leases/1/write-off", Answer),
        ("POST", "/v1/leases/1/adopt", Answer),
    ],
)
def test_every_answer_is_its_message_type(api: Any, method: str, path: str, shape: Any) -> None:
    """No key is missing, none is added, each is of its type."""
    body = {"text": "t", "source": "s", "folder": "/", "request_id": "r", "by": "me"}
    reply = asked(api[0], method, path, body=json.dumps(body).encode() if method == "POST" else b"", **let_in())

    assert reply.status_code in (200, 201)
    assert fits(reply.json(), shape), reply.text
