"""A market that answers what a test wrote down for it, and keeps what it was asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from daemon.domain.market import Account, Charge, CreateRequest, Instance, Listing, Offer, OfferQuery
from daemon.market.permit import DestroyPermit
from daemon.market.port import Reply

OFFER = Offer(
    id=1, machine_id=5, host_id=6, gpu_name="H100", num_gpus=1, gpu_ram_mb=80_000, price_per_hour=2_000_000,
    inet_down_per_gb=0, inet_up_per_gb=0, disk_space_gb=100.0, inet_up_mbps=1.0, reliability=0.99, verified=True,
    rentable=True,
    direct_port_count=1, cuda_max_good=13.0, duration_s=1e6, end_date_ms=None, geolocation="SE",
)  # fmt: skip


def instance(number: int, label: str | None = None, status: str = "running", intended: str = "running") -> Instance:
    return Instance(
        id=number, label=label, actual_status=status, intended_status=intended, cur_state=status, status_msg="",
        machine_id=5, host_id=6, gpu_name="H100", num_gpus=1, price_per_hour=2_000_000, storage_per_hour=20_000,
        start_ms=None, end_ms=None, direct=("127.0.0.1", 22), proxy=None, gpu_util=None,
    )  # fmt: skip


@dataclass
class ScriptedMarket:
    """`answers`: what each changing call returns or raises, by its name. `gate`: such a call waits until it is set."""

    answers: dict[str, Reply | Exception] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    billed: list[Charge] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    user: int = 1  # whose key we have
    gate: asyncio.Event | None = None
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def _answer(self, call: str, about: int) -> Reply:
        self.asked.append((call, about))
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answers.get(call, Reply(200, "{}"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def create(self, request: CreateRequest) -> Reply:
        return await self._answer("create", request.offer_id)

    async def start(self, instance_id: int) -> Reply:
        return await self._answer("start", instance_id)

    async def stop(self, instance_id: int) -> Reply:
        return await self._answer("stop", instance_id)

    async def destroy(self, permit: DestroyPermit) -> Reply:
        return await self._answer("destroy", permit.instance_id)

    async def label(self, instance_id: int, label: str) -> Reply:
        return await self._answer("label", instance_id)

    async def attach_key(self, instance_id: int, public_key: str) -> Reply:
        return await self._answer("attach_key", instance_id)

    async def listing(self) -> Listing:
        if isinstance(error := self.answers.get("account"), Exception):
            return Listing(trusted=False, problem=str(error))
        return Listing(trusted=True, instances=tuple(self.instances), credit=100_000_000, account=self.user)

    async def show(self, instance_id: int) -> Instance | None:
        return next((i for i in self.instances if i.id == instance_id), None)

    async def search(self, query: OfferQuery) -> list[Offer]:
        return [OFFER]

    async def charges(self, since_ms: int) -> list[Charge]:
        if isinstance(error := self.answers.get("charges"), Exception):
            raise error
        return self.billed

    async def account(self) -> Account:
        if isinstance(error := self.answers.get("account"), Exception):
            raise error
        return Account(user_id=self.user, credit=100_000_000)

    async def logs(self, instance_id: int, tail: int) -> str:
        return ""

    async def aclose(self) -> None:
        return None
