"""Vast.ai over httpx: the `Market` port in the words of its REST API.

Whatever changes something is sent exactly once. Reads are repeated a few times when no answer comes. The key travels
in a header to the market's own host only; redirects are not followed, and logs are fetched from their store without it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import stamina

from daemon import web
from daemon.clock import Clock
from daemon.domain import money
from daemon.domain.market import Account, Charge, CreateRequest, Instance, Listing, Offer, OfferQuery
from daemon.domain.offers import mismatch
from daemon.errors import CredentialsRefused, HomeportError, MarketError, MarketRefused, MarketUnreachable, RateLimited
from daemon.market import wire
from daemon.market.limiter import Call, Limiter
from daemon.market.permit import DestroyPermit
from daemon.market.port import Market, Reply
from daemon.settings import ApiKey, is_loopback

DEADLINE_S = 60.0  # for one request, reply included; creates have been seen to take tens of seconds
CONNECT_S = 10.0
READ_ATTEMPTS = 3
READ_PATIENCE_S = 60.0  # for all attempts of one read
LONGEST_WAIT_S = 30.0  # a 429 that asks for more is told to the caller instead of being waited for
MAX_SEARCHES = 5  # pages of 64 offers, cheapest first: the dearer ones would not be chosen
MAX_PAGES = 400  # of a list: ten thousand instances
LOG_ATTEMPTS = 30  # the log store answers 403 or 404 until the host has delivered
LOG_WAIT_S = 0.3
DAY_S = 86_400
RETRY_S = 0.5  # before the second attempt of a read; doubled for the third

T = TypeVar("T")
Query = dict[str, str]


class Vast(Market):
    """The market under one key; make one per key, since the limits are the key's. `transport` replaces the network."""

    def __init__(
        self,
        url: str,
        key: ApiKey,
        clock: Clock,
        time_scale: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if urlsplit(url).scheme != "https" and not is_loopback(url):
            raise HomeportError(f"{url}: the key would travel unencrypted", hint="use an https:// address")
        self._url = url.rstrip("/")
        self._key = key
        self._clock = clock
        self._retry_s = RETRY_S / time_scale
        self._limiter = Limiter(clock, time_scale)
        self._market_ms: int | None = None  # what its clock showed in the last answer
        self._http = web.client(
            transport=transport,
            timeout=httpx.Timeout(DEADLINE_S, connect=CONNECT_S),
            follow_redirects=False,
            trust_env=not is_loopback(url),
        )

    # Reading

    async def account(self) -> Account:
        return await self._read(Call.ACCOUNT, "GET", "/api/v0/users/current/", wire.read_account)

    async def search(self, query: OfferQuery) -> list[Offer]:
        """Every offer that fits, cheapest first. 64 come back at most: the price floor is raised from page to page."""
        found: dict[int, Offer] = {}
        floor: float | None = None
        for _ in range(MAX_SEARCHES):
            body = wire.search_body(query, floor)
            page = await self._read(Call.SEARCH, "POST", "/api/v0/bundles/", wire.read_offers, body=body)
            fresh = [offer for offer in page if offer.id not in found]
            found |= {offer.id: offer for offer in fresh}
            if len(page) < wire.SEARCH_LIMIT or not fresh:
                break
            floor = max(offer.price_per_hour for offer in page) / money.MICRO
        fitting = [offer for offer in found.values() if mismatch(offer, query) is None]
        return sorted(fitting, key=lambda offer: (offer.price_per_hour, offer.id))

    async def show(self, instance_id: int) -> Instance | None:
        try:
            seen = await self._read(Call.SHOW, "GET", _path(instance_id), wire.read_shown, query={"owner": "me"})
        except MarketRefused as refusal:
            if refusal.status == 404:  # the only 404 that is a refusal says "no such instance" in words
                return None
            raise
        if seen is not None and seen.id != instance_id:
            raise MarketUnreachable(f"show: asked for instance {instance_id}, the market answered of {seen.id}")
        return seen

    async def listing(self) -> Listing:
        """The account probe and every page of the list. Untrusted when any of them is not what it should be."""
        order = json.dumps([{"col": "id", "dir": "asc"}])
        query = {"select_filters": "{}", "order_by": order, "limit": str(wire.PAGE_LIMIT)}
        try:
            account = await self.account()
            market_ms = self._market_ms
            instances = await self._pages(Call.LIST, "/api/v1/instances/", query, wire.read_instances)
        except (MarketError, CredentialsRefused) as error:
            return Listing(trusted=False, problem=error.message)
        return Listing(
            trusted=True,
            instances=tuple({i.id: i for i in instances}.values()),
            credit=account.credit,
            market_ms=market_ms,
            account=account.user_id,
        )

    async def charges(self, since_ms: int) -> list[Charge]:
        """What was billed for instances, from `since_ms` until now, whichever way our clock is wrong."""
        now_ms = self._clock.wall_ms()
        ahead_ms = now_ms - (self._market_ms or now_ms)
        first_ms, last_ms = since_ms - max(0, ahead_ms), now_ms + max(0, -ahead_ms)
        period = {"gte": first_ms // 1000, "lte": last_ms // 1000 + DAY_S}
        wanted = json.dumps({"day": period, "type": {"in": ["instance"]}})
        query = {"select_filters": wanted, "latest_first": "false", "limit": "100", "format": "table"}
        return await self._pages(Call.CHARGES, "/api/v0/charges/", query, wire.read_charges)

    async def logs(self, instance_id: int, tail: int) -> str:
        """The end of the container's log. Raises MarketUnreachable when the host does not deliver it."""
        path = f"/api/v0/instances/request_logs/{instance_id}/"
        url = await self._read(Call.LOGS, "PUT", path, wire.read_result_url, body={"tail": str(tail)})
        if urlsplit(url).scheme != "https" and not is_loopback(url):
            raise MarketUnreachable(f"logs: {url!r} is no address to fetch them from")
        for _ in range(LOG_ATTEMPTS):
            with _translated("logs"):
                async with asyncio.timeout(DEADLINE_S):
                    reply = await self._http.get(url)  # without the key: it is not the market's host
            if reply.status_code == 200:
                return _text(reply)
            await asyncio.sleep(LOG_WAIT_S)
        raise MarketUnreachable(f"logs: instance {instance_id} delivered none")

    # Changing

    async def create(self, request: CreateRequest) -> Reply:
        reply = await self._exchange(Call.CREATE, "PUT", f"/api/v0/asks/{request.offer_id}/", wire.create_body(request))
        if reply.new_contract is None:
            _raise_if_failed(Call.CREATE, reply)
            raise MarketUnreachable("create: agreed without naming a contract", status=reply.status, body=reply.body)
        return Reply(reply.status, reply.body, instance_id=reply.new_contract)  # even in an error: something exists now

    async def start(self, instance_id: int) -> Reply:
        """That it waits for its GPU is an answer too, for the caller to cancel: it only calls itself a failure."""
        reply = await self._exchange(Call.CHANGE, "PUT", _path(instance_id), {"state": "running"})
        queued = wire.says_queued(reply)
        if not queued:
            _raise_if_failed(Call.CHANGE, reply)
        return Reply(reply.status, reply.body, queued=queued)

    async def stop(self, instance_id: int) -> Reply:
        reply = await self._ask(Call.CHANGE, "PUT", _path(instance_id), {"state": "stopped"})
        return Reply(reply.status, reply.body)

    async def label(self, instance_id: int, label: str) -> Reply:
        reply = await self._ask(Call.CHANGE, "PUT", _path(instance_id), {"label": label})
        return Reply(reply.status, reply.body)

    async def attach_key(self, instance_id: int, public_key: str) -> Reply:
        """A key that is attached already counts as attached."""
        reply = await self._exchange(Call.ATTACH, "POST", f"{_path(instance_id)}ssh/", {"ssh_key": public_key})
        if not wire.says_attached_already(reply):
            _raise_if_failed(Call.ATTACH, reply)
        return Reply(reply.status, reply.body)

    async def destroy(self, permit: DestroyPermit) -> Reply:
        """Accepted is not gone. That the market knows no such instance is an answer too, for the caller to confirm."""
        reply = await self._exchange(Call.DESTROY, "DELETE", _path(permit.instance_id), {})
        if not wire.says_unknown_instance(reply):
            _raise_if_failed(Call.DESTROY, reply)
        return Reply(reply.status, reply.body)

    async def aclose(self) -> None:
        await self._http.aclose()

    # Requests

    async def _pages(self, call: Call, path: str, query: Query, read: Callable[[wire.Json], wire.Page[T]]) -> list[T]:
        """Every row of a paged list, or an error: a list with a page missing is no list."""
        rows: list[T] = []
        asked = query
        for _ in range(MAX_PAGES):
            page = await self._read(call, "GET", path, read, query=asked)
            rows += page.rows
            if page.next_token is None:
                return rows
            asked = query | {"after_token": page.next_token}
        raise MarketUnreachable(f"{call}: the pages do not end")

    async def _read(
        self,
        call: Call,
        method: str,
        path: str,
        read: Callable[[wire.Json], T],
        *,
        query: Query | None = None,
        body: wire.Json | None = None,
    ) -> T:
        """Ask for something that changes nothing, a few times if need be, and return what `read` makes of the reply."""
        async for attempt in stamina.retry_context(
            on=_is_passing,
            attempts=READ_ATTEMPTS,
            timeout=READ_PATIENCE_S,
            wait_initial=self._retry_s,
            wait_jitter=self._retry_s,
        ):
            with attempt:
                reply = await self._ask(call, method, path, body, query)
                try:
                    return read(reply.json or {})
                except wire.Unreadable as error:
                    raise MarketUnreachable(f"{call}: {error}", status=reply.status, body=reply.body) from error
        raise AssertionError("the loop returns or raises")

    async def _ask(
        self, call: Call, method: str, path: str, body: wire.Json | None = None, query: Query | None = None
    ) -> wire.Answer:
        """One exchange whose reply is a success; any other is raised as the error it stands for."""
        reply = await self._exchange(call, method, path, body, query)
        _raise_if_failed(call, reply)
        return reply

    async def _exchange(
        self, call: Call, method: str, path: str, body: wire.Json | None = None, query: Query | None = None
    ) -> wire.Answer:
        """Send once, when the limits allow. Raises MarketUnreachable or RateLimited; any other reply is returned."""
        with _translated(call):
            async with self._limiter.turn(call), asyncio.timeout(DEADLINE_S):
                response = await self._http.request(
                    method,
                    self._url + path,
                    params=query,
                    json=body,
                    headers={"Authorization": f"Bearer {self._key.value}"},
                )
        self._market_ms = wire.clock_ms(response.headers)
        reply = wire.answer(response.status_code, _text(response), response.headers)
        if reply.status != 429:
            self._limiter.accepted(call)
            return reply
        now_ms = self._market_ms or self._clock.wall_ms()
        wait_s = self._limiter.refused(call, wire.retry_after_s(reply, now_ms / 1000))
        if reply.new_contract is not None:
            return reply
        raise RateLimited(f"{call}: the market asks to wait {wait_s:g} s", retry_after_s=wait_s, body=reply.body)


def _path(instance_id: int) -> str:
    return f"/api/v0/instances/{instance_id}/"


def _text(response: httpx.Response) -> str:
    """As UTF-8, which JSON is: what a header names may be a codec that decodes no text, and raises anything."""
    return response.content.decode("utf-8", "replace")


def _raise_if_failed(call: Call, reply: wire.Answer) -> None:
    if error := wire.failure(call, reply):
        raise error


@contextmanager
def _translated(call: str) -> Iterator[None]:
    """The network's errors as ours: whatever went wrong, the request may have arrived."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise MarketUnreachable(f"{call}: no answer ({type(error).__name__})") from error


def _is_passing(error: Exception) -> bool:
    """Whether asking again soon may help."""
    if isinstance(error, RateLimited):
        return error.retry_after_s <= LONGEST_WAIT_S
    return isinstance(error, MarketUnreachable)
