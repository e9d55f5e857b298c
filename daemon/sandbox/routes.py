"""The market's HTTP API: paths, bodies and replies over the `Provider`, with and without a trailing slash."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from . import listing, search
from .boxes import Boxes
from .catalogue import MACHINES, columns
from .instances import RECYCLING, Instance
from .provider import QUEUED, Provider, Refusal, terms

COMMANDS = frozenset({"ls", "rm", "du"})  # all that `execute` runs
MAX_COMMAND = 512
RESULT_AFTER_S = 0.3  # a result_url answers 404 at first
LOG_TAIL = 1000  # lines

Handler = Callable[[Request], Awaitable[Response]]


class Api:
    """The routes of the market."""

    def __init__(self, provider: Provider, boxes: Boxes, url: str) -> None:
        self._provider = provider
        self._ledger = provider.ledger
        self._boxes = boxes
        self._url = url
        self._results: dict[str, tuple[float, str]] = {}

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/api/v0/gpu_names/unique", self.gpu_names),
            ("GET", "/api/v0/gpu_types", self.gpu_types),
            ("POST", "/api/v0/bundles", self.search),
            ("PUT", "/api/v0/search/asks", self.search),
            ("PUT", "/api/v0/asks/{id:int}", self.create),
            ("GET", "/api/v1/instances", self.list),
            ("GET", "/api/v0/instances", self.retired),
            ("PUT", "/api/v0/instances", self.change_many),
            ("DELETE", "/api/v0/instances", self.destroy_many),
            ("GET", "/api/v0/instances/filters", self.filters),
            ("PUT", "/api/v0/instances/reboot/{id:int}", self.reboot),
            ("PUT", "/api/v0/instances/recycle/{id:int}", self.recycle),
            ("PUT", "/api/v0/instances/bid_price/{id:int}", self.bid),
            ("PUT", "/api/v0/instances/request_logs/{id:int}", self.logs),
            ("PUT", "/api/v0/instances/command/{id:int}", self.execute),
            ("GET", "/api/v0/instances/{id:int}", self.show),
            ("PUT", "/api/v0/instances/{id:int}", self.change),
            ("DELETE", "/api/v0/instances/{id:int}", self.destroy),
            ("GET", "/api/v0/instances/{id:int}/ssh", self.instance_keys),
            ("POST", "/api/v0/instances/{id:int}/ssh", self.attach_key),
            ("DELETE", "/api/v0/instances/{id:int}/ssh/{key:int}", self.detach_key),
            ("GET", "/api/v0/ssh", self.account_keys),
            ("POST", "/api/v0/ssh", self.add_account_key),
            ("DELETE", "/api/v0/ssh/{key:int}", self.delete_account_key),
            ("GET", "/api/v0/users/current", self.user),
            ("GET", "/api/v0/charges", self.charges),
            ("GET", "/api/v1/invoices", self.invoices),
            ("GET", "/sandbox/results/{token}", self.result),
        ]
        return [
            Route(path + slash, handler, methods=[method]) for method, path, handler in table for slash in ("", "/")
        ]

    # Offers

    async def gpu_names(self, request: Request) -> Response:
        return JSONResponse({"gpu_names": sorted({machine.gpu for machine in MACHINES.values()})})

    async def gpu_types(self, request: Request) -> Response:
        return JSONResponse({"gpu_types": sorted({machine.gpu for machine in MACHINES.values()})})

    async def search(self, request: Request) -> Response:
        body = await request.json()
        query = body.get("q", body)
        disk_gb, bid = search.terms(query)
        now = time.time()
        offers = [
            columns(offer, self._provider.ask_id(offer), disk_gb=disk_gb, bid=bid, now=now)
            for offer in self._provider.offers()
        ]
        try:
            return JSONResponse({"offers": search.select(offers, query)})
        except search.BadQuery as error:
            raise Refusal(400, "invalid_args", str(error)) from error

    # Instances

    async def create(self, request: Request) -> Response:
        asked = terms(await request.json())
        faults = request.state.faults
        try:
            instance = self._provider.create(
                request.path_params["id"], asked,
                accept_taken="double_accept" in faults,
                cannot_start="cannot_start" in faults,
                listed_after_s=faults.get("late_listing", {}).get("seconds", 0.0),
            )  # fmt: skip
        except Refusal as refusal:
            if "new_contract" in refusal.body:
                request.state.effect = f"created {refusal.body['new_contract']}"
            raise
        request.state.effect = f"created {instance.id}"
        return JSONResponse({"success": True, "new_contract": instance.id, "instance_api_key": instance.api_key})

    def _rows(self, younger_hidden_s: float = 0.0) -> list[dict[str, Any]]:
        now = time.time()
        return [
            listing.row(i, now)
            for i in self._ledger.existing()
            if self._provider.visible(i.id, now) and now - i.created_at >= younger_hidden_s
        ]

    async def list(self, request: Request) -> Response:
        lag = request.state.faults.get("list_lag", {}).get("seconds", 0.0)
        return JSONResponse(listing.page(self._rows(lag), dict(request.query_params)))

    async def retired(self, request: Request) -> Response:
        raise Refusal(410, "deprecated_endpoint", "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.")

    async def filters(self, request: Request) -> Response:
        columns_ = ("actual_status", "verification", "gpu_name")
        return JSONResponse(
            {"success": True, "filters": [{column: r[column] for column in columns_} for r in self._rows()]}
        )

    async def show(self, request: Request) -> Response:
        now = time.time()
        instance = self._provider.visible(request.path_params["id"], now)
        return JSONResponse({"instances": None if instance is None else listing.row(instance, now)})

    async def change(self, request: Request) -> Response:
        instance_id = request.path_params["id"]
        body = await request.json()
        if "state" in body:
            now_or_later = self._provider.set_state(instance_id, str(body["state"]))
            request.state.effect = f"{body['state']} {instance_id}"
            return JSONResponse({"success": True} if now_or_later else QUEUED)
        if "label" in body:
            self._provider.set_label(instance_id, str(body["label"]))
            request.state.effect = f"labelled {instance_id}"
            return JSONResponse({"success": True})
        raise Refusal(400, "invalid_args", "nothing to change: expected state or label")

    async def change_many(self, request: Request) -> Response:
        body = await request.json()
        ids = [int(each) for each in body["ids"]]
        for instance_id in ids:
            self._provider.set_state(instance_id, str(body["state"]))
        request.state.effect = f"{body['state']} {' '.join(map(str, ids))}"
        return JSONResponse({"success": True})

    async def bid(self, request: Request) -> Response:
        price = (await request.json()).get("price")
        self._provider.set_bid(request.path_params["id"], None if price is None else float(price))
        request.state.effect = f"bid {request.path_params['id']}"
        return JSONResponse({"success": True})

    async def reboot(self, request: Request) -> Response:
        self._provider.restart(request.path_params["id"], how="rebooting")
        request.state.effect = f"rebooted {request.path_params['id']}"
        return JSONResponse({"success": True})

    async def recycle(self, request: Request) -> Response:
        self._provider.restart(request.path_params["id"], how=RECYCLING)
        request.state.effect = f"recycled {request.path_params['id']}"
        return JSONResponse({"success": True})

    async def destroy(self, request: Request) -> Response:
        instance_id, faults = request.path_params["id"], request.state.faults
        self._provider.existing(instance_id)
        if "destroy_undone" in faults:
            self._ledger.change(instance_id, listed_from=time.time() + faults["destroy_undone"]["seconds"])
        elif "destroy_ignored" not in faults:
            self._provider.destroy(instance_id, lingers_s=faults.get("destroy_lingers", {}).get("seconds", 0.0))
            request.state.effect = f"destroyed {instance_id}"
        return JSONResponse({"success": True})

    async def destroy_many(self, request: Request) -> Response:
        ids = [int(each) for each in (await request.json())["instance_ids"]]
        for instance_id in ids:
            self._provider.destroy(instance_id)
        request.state.effect = f"destroyed {' '.join(map(str, ids))}"
        return JSONResponse({"success": True})

    # Keys

    async def instance_keys(self, request: Request) -> Response:
        instance = self._provider.existing(request.path_params["id"])
        keys = [{"id": key.id, "public_key": key.public_key} for key in instance.keys]
        return JSONResponse({"success": True, "ssh_keys": json.dumps(keys)})  # a string of JSON, as the market has it

    async def attach_key(self, request: Request) -> Response:
        instance_id, faults = request.path_params["id"], request.state.faults
        if "key_lost" not in faults:
            late_s = faults.get("late_key", {}).get("seconds", 0.0)
            self._provider.attach_key(instance_id, str((await request.json()).get("ssh_key", "")), late_s=late_s)
            request.state.effect = f"key attached to {instance_id}"
        return JSONResponse({"success": True, "msg": "SSH key attached; it takes effect shortly."})

    async def detach_key(self, request: Request) -> Response:
        self._provider.detach_key(request.path_params["id"], request.path_params["key"])
        request.state.effect = f"key detached from {request.path_params['id']}"
        return JSONResponse({"success": True})

    async def account_keys(self, request: Request) -> Response:
        keys = self._ledger.account_keys()
        if not keys:
            raise Refusal(404, "not_found", "No SSH keys found for the user.")
        return JSONResponse(keys)

    async def add_account_key(self, request: Request) -> Response:
        key_id = self._ledger.add_account_key(str((await request.json())["ssh_key"]).strip(), time.time())
        request.state.effect = f"account key {key_id}"
        return JSONResponse({"success": True, "key": next(k for k in self._ledger.account_keys() if k["id"] == key_id)})

    async def delete_account_key(self, request: Request) -> Response:
        if not self._ledger.delete_account_key(request.path_params["key"]):
            raise Refusal(404, "not_found", "SSH key not found.")
        request.state.effect = f"account key {request.path_params['key']} deleted"
        return JSONResponse({"success": True})

    # Logs and commands: the reply names a URL where the result appears a moment later

    async def logs(self, request: Request) -> Response:
        instance = self._provider.existing(request.path_params["id"])
        wanted = await request.json()
        lines = self._boxes.log(instance.id).splitlines()
        if wanted.get("filter"):
            lines = [line for line in lines if re.search(str(wanted["filter"]), line)]
        return self._promise("\n".join(lines[-int(wanted.get("tail") or LOG_TAIL) :]) + "\n")

    async def execute(self, request: Request) -> Response:
        instance = self._provider.existing(request.path_params["id"])
        command = str((await request.json()).get("command", ""))
        words = shlex.split(command)
        if len(command) > MAX_COMMAND or not words or words[0] not in COMMANDS:
            raise Refusal(400, "invalid_args", "Invalid command given")
        output = await _run(words, self._boxes.home(instance.id))
        request.state.effect = f"ran {words[0]} on {instance.id}"
        return self._promise(output, writeable_path=str(self._boxes.home(instance.id)))

    def _promise(self, text: str, **more: str) -> Response:
        token = secrets.token_hex(16)
        self._results[token] = (time.monotonic() + RESULT_AFTER_S, text)
        return JSONResponse({"success": True, "result_url": f"{self._url}/sandbox/results/{token}", **more})

    async def result(self, request: Request) -> Response:
        ready_at, text = self._results.get(request.path_params["token"], (float("inf"), ""))
        return PlainTextResponse(text) if time.monotonic() >= ready_at else PlainTextResponse("", 404)

    # Money

    async def user(self, request: Request) -> Response:
        credit = self._ledger.credit(time.time())
        return JSONResponse(
            {"id": 1, "email": "sandbox@localhost", "username": "sandbox", "fullname": "Sandbox", "credit": credit,
             "balance": 0.0, "has_billing": True, "can_pay": True, "ssh_key": None, "billaddress_line1": ""}
        )  # fmt: skip

    async def charges(self, request: Request) -> Response:
        now = time.time()
        asked = listing.parameter(request.query_params, "select_filters", {})
        every = (self._charge(instance, now) for instance in self._ledger.all())
        rows = [charge for charge in every if listing.is_charged_within(charge, asked)]
        if request.query_params.get("latest_first") == "true":
            rows.reverse()
        after = int(request.query_params.get("after_token") or 0)
        limit = min(int(request.query_params.get("limit") or 100), 500)
        shown = rows[after : after + limit]
        more = after + limit < len(rows)
        return JSONResponse(
            {"success": True, "results": shown, "count": len(shown), "total": len(rows),
             "next_token": str(after + limit) if more else None}
        )  # fmt: skip

    def _charge(self, instance: Instance, now: float) -> dict[str, Any]:
        """One row per instance, kept with its label after the destroy."""
        cost = self._ledger.cost(instance, now)
        items = {"gpu": cost.gpu, "disk": cost.disk, "bwd": cost.bwd, "bwu": cost.bwu}
        return {
            "start": instance.created_at,
            "end": instance.destroyed_at or now,
            "type": "instance",
            "source": f"instance-{instance.id}",
            "description": f"Instance {instance.id}",
            "amount": cost.total,
            "metadata": {"label": instance.label, "image_uuid": instance.image},
            "items": [{"type": kind, "amount": amount} for kind, amount in items.items()],
        }

    async def invoices(self, request: Request) -> Response:
        return JSONResponse({"success": True, "results": [], "count": 0, "total": 0, "next_token": None})


async def objected(request: Request, exc: Exception) -> Response:
    """A refusal as the market words it, or its words for a body that is not what the verb takes."""
    if isinstance(exc, Refusal):
        return JSONResponse(exc.body, exc.status)
    return JSONResponse({"success": False, "error": "invalid_args", "msg": f"error 400/3467: {exc}"}, 400)


async def _run(words: list[str], home: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *words, cwd=home, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode(errors="replace")
