"""A market with a ledger of its own. What it answers may be late, lost or wrong; what it bills is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from daemon.domain.market import Account, Charge, CreateRequest, Instance, Listing, Offer, OfferQuery
from daemon.errors import CredentialsRefused, MarketRefused, MarketUnreachable, NoCredit, OfferGone, RateLimited
from daemon.market.permit import DestroyPermit
from daemon.market.port import Reply

from .loop import LIFE
from .machine import Machine

if TYPE_CHECKING:
    from .simulation import Simulation

T = TypeVar("T")
CREDIT = 200_000_000  # micro-dollars
OURS, ANOTHERS = 1, 2  # accounts
CANARY = "canary-instance-key-5f1e"  # must be nowhere in the daemon's files
LATE_S = (0.0, 5.0, 60.0, 600.0, 86_400.0)
OFFER = Offer(
    id=1, machine_id=51, host_id=6, gpu_name="H100 SXM", num_gpus=1, gpu_ram_mb=80_000, price_per_hour=2_000_000,
    inet_down_per_gb=1_000, inet_up_per_gb=1_000, disk_space_gb=500.0, inet_up_mbps=1_000.0, reliability=0.99,
    verified=True, rentable=True, direct_port_count=4, cuda_max_good=13.2, duration_s=1e7, end_date_ms=None,
    geolocation="SE",
)  # fmt: skip
AWAY_LIMIT = re.compile(r"away\.py \S+ (\d+) >>")  # in a start script, seconds
FOREIGN = (900, 901)  # instances that are none of ours: another install's, and one without label


def offered(number: int) -> Offer:
    """One of the eight that are searched: each on a machine and at a price of its own."""
    price = OFFER.price_per_hour + 10_000 * number
    return replace(OFFER, id=number, machine_id=50 + number, price_per_hour=price)


@dataclass
class Given:
    """One listing as it was handed out."""

    at: float  # world time
    trusted: bool
    shown: frozenset[int]


@dataclass
class FakeMarket:
    """The provider. `machines` is everything it ever rented out, by instance id."""

    sim: Simulation
    machines: dict[int, Machine] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    creates: dict[str, int] = field(default_factory=dict)  # requests on the wire, by label
    refused: set[str] = field(default_factory=set)  # labels of those that were answered by a no
    key_works: bool = True
    account_of_key: int = OURS  # which a daemon that starts now asks with
    credit: int = CREDIT
    next_id: int = 1000

    def __post_init__(self) -> None:
        for number, label in zip(FOREIGN, ("hp-other1-abcdef-0123456789", None), strict=True):
            self.machines[number] = Machine(self.sim, number, label, OFFER, 0.0, math.inf)

    # -- what the daemon calls, through the port of one life (life.py)

    async def search(self, query: OfferQuery) -> list[Offer]:
        def look() -> list[Offer]:
            taken = self._taken()
            return [offer for offer in map(offered, range(1, 9)) if offer.machine_id not in taken]

        return await self._read("search", look)

    async def account(self) -> Account:
        return await self._read("account", lambda: Account(user_id=self._user, credit=self.credit))

    async def listing(self) -> Listing:
        sky = self.sim.sky
        await self._pause()
        ending = self.sim.ending("market", "listing")
        if ending is not None or not self.key_works or sky.strikes("listing untrusted"):
            self.given.append(Given(self.sim.clock.boot(), False, frozenset()))
            return Listing(trusted=False, problem="HTTP 502")
        if self._is_another:
            self.given.append(Given(self.sim.clock.boot(), False, frozenset()))
            return Listing(True, (), credit=CREDIT, market_ms=self.sim.clock.true_ms(), account=self._user)
        behind_s = self.sim.chance.choice((5.0, 20.0, 60.0)) if sky.strikes("listing behind") else 0.0
        shown = [m for m in self.machines.values() if m.is_listed(behind_s)]
        self.given.append(Given(self.sim.clock.boot(), True, frozenset(m.id for m in shown)))
        self.sim.witness.listed({m.id for m in shown if m.runs}, {m.id: m.queued_for for m in shown if m.queued})
        shown_now = tuple(m.as_listed(behind_s) for m in shown)
        clock = self.sim.clock
        return Listing(True, shown_now, credit=self.credit, market_ms=clock.true_ms(), account=self._user)

    async def show(self, instance_id: int) -> Instance | None:
        def look() -> Instance | None:
            machine = None if self._is_another else self.machines.get(instance_id)
            return machine.as_listed(0.0) if machine is not None and machine.is_shown else None

        return await self._read("show", look)

    async def charges(self, since_ms: int) -> list[Charge]:
        def look() -> list[Charge]:
            now = self.sim.clock.boot()
            ours = () if self._is_another else self.machines.values()
            charged = [m for m in ours if m.label and m.charged_from <= now]
            return [Charge(m.id, m.label, round(m.billed()), *self._times(m)) for m in charged]

        return await self._read("charges", look)

    async def create(self, request: CreateRequest) -> Reply:
        self.sim.wire("create", 0, label=request.label)
        self.creates[request.label] = self.creates.get(request.label, 0) + 1
        sky, offer = self.sim.sky, offered(request.offer_id)

        def refuse_taken() -> None:
            if offer.machine_id in self._taken() or self._is_another:
                raise OfferGone("taken", status=404)

        def rent(late_s: float = 0.0) -> Machine:
            number, self.next_id = self.next_id, self.next_id + 1
            price = offer.price_per_hour + (500_000 if sky.strikes("other price") else 0)
            ready_s = self.sim.chance.choice((20.0, 40.0, 90.0))
            limit_s = float(AWAY_LIMIT.findall(request.onstart)[0])
            machine = Machine(self.sim, number, request.label, replace(offer, price_per_hour=price), ready_s, limit_s)
            machine.challenge = dict(request.env)
            machine.listed_from = self.sim.clock.boot() + late_s
            machine.charged_from = self.sim.clock.boot() + (86_400.0 if sky.strikes("charge late") else 0.0)
            self.machines[number] = machine
            self.sim.say("market", f"rents out {number}" + (f", listed {late_s:g} s later" if late_s else ""))
            return machine

        def normal() -> Reply:
            refuse_taken()
            if sky.strikes("create refused"):
                raise OfferGone("taken", status=404)
            if self.credit <= 0:
                raise NoCredit("no credit", status=400)
            if sky.strikes("create error with id"):
                return Reply(400, '{"success": false, "new_contract": 1}', instance_id=rent().id)
            if sky.strikes("create empty answer"):
                rent(self._late_s())
                return Reply(200, "")
            if sky.strikes("create refused, rented"):
                rent(self._late_s())
                raise MarketRefused("no", status=400, body='{"success": false}')
            return Reply(200, f'{{"instance_api_key": "{CANARY}"}}', instance_id=rent().id)

        def unheard() -> None:
            with contextlib.suppress(OfferGone):
                refuse_taken()
                rent(self._late_s())

        try:
            return await self._change(
                "create", normal, lost_before="create lost before", lost_after="create lost after",
                unheard=unheard,
            )  # fmt: skip
        except (MarketRefused, RateLimited, CredentialsRefused, OfferGone, NoCredit):
            self.refused.add(request.label)
            raise

    async def start(self, instance_id: int) -> Reply:
        self.sim.wire("start", instance_id)
        machine = self._known(instance_id)

        def start() -> Reply:
            self._refuse_another()
            if self.sim.sky.strikes("start queued"):
                machine.queue()
                return Reply(200, '{"msg": "scheduled"}', queued=True)
            machine.power_on()
            return Reply(200, "{}")

        try:
            return await self._change("start", start, lost_before="stop lost", lost_after="stop lost", unheard=start)
        finally:  # who did not hear the answer can see it in the next listing
            machine.queued_for = LIFE.get()

    async def stop(self, instance_id: int) -> Reply:
        self.sim.wire("stop", instance_id)
        machine = self._known(instance_id)

        def stop() -> Reply:
            self._refuse_another()
            machine.power_off()
            return Reply(200, "{}")

        return await self._change("stop", stop, lost_before="stop lost", lost_after="stop lost", unheard=stop)

    async def destroy(self, permit: DestroyPermit) -> Reply:
        self.sim.wire("destroy", permit.instance_id)
        machine, sky = self._known(permit.instance_id), self.sim.sky

        def destroy() -> Reply:
            if self._is_another:
                return Reply(404, '{"msg": "no such instance"}')  # an answer, for listings to confirm
            if sky.strikes("destroy refused"):
                raise MarketRefused("not found", status=404)
            if sky.strikes("destroy lingers"):
                machine.end(after_s=600.0)
            elif sky.strikes("destroy comes back"):
                machine.hide(self.sim.chance.choice((90.0, 900.0, 30_000.0)))
            elif not sky.strikes("destroy ignored"):
                machine.end()
            return Reply(200, "{}")

        return await self._change(
            "destroy", destroy, lost_before="destroy lost before", lost_after="destroy lost after", unheard=destroy
        )

    async def label(self, instance_id: int, label: str) -> Reply:
        raise NotImplementedError("the daemon labels nothing after its creation")

    async def logs(self, instance_id: int, tail: int) -> str:
        raise NotImplementedError("the daemon reads no logs of the market")

    async def attach_key(self, instance_id: int, public_key: str) -> Reply:
        self.sim.wire("attach_key", instance_id)
        return await self._read("attach_key", lambda: Reply(200, "{}"))

    async def aclose(self) -> None:
        return None

    def _times(self, machine: Machine) -> tuple[int | None, int | None]:
        """From when to when it was charged, which some markets do not say."""
        if not self.sim.terms.timed:
            return None, None
        clock = self.sim.clock
        until = clock.boot() if machine.ended_at is None else machine.ended_at
        return clock.true_ms_at(machine.created), clock.true_ms_at(until)

    def _taken(self) -> set[int]:
        return {m.offer.machine_id for m in self.machines.values() if m.is_there}

    def is_of(self, job: str, instance: int) -> bool:
        """It was rented for that job."""
        return instance in self.machines and self.machines[instance].job == job

    # -- how a call can go

    def _late_s(self) -> float:
        return self.sim.chance.choice(LATE_S)

    def _known(self, instance_id: int) -> Machine:
        machine = self.machines.get(instance_id)
        if machine is None or not machine.is_there:
            raise MarketRefused("no such instance", status=404)
        return machine

    @property
    def _user(self) -> int:
        """Whose key this life asks with; nobody asks outside one."""
        life = LIFE.get()
        assert life is not None
        return life.account

    @property
    def _is_another(self) -> bool:
        return self._user != OURS

    def _refuse_another(self) -> None:
        if self._is_another:
            raise MarketRefused("no such instance", status=404)

    async def _pause(self) -> None:
        await asyncio.sleep(self.sim.chance.choice((0.05, 0.2, 1.0)))

    def _gatekeeper(self) -> None:
        if self.sim.sky.strikes("rate limited"):
            raise RateLimited("slow down", retry_after_s=20.0)
        if not self.key_works or self.sim.sky.strikes("key refused"):
            raise CredentialsRefused("401")

    async def _read(self, what: str, look: Callable[[], T]) -> T:
        if self.sim.ending("market", what) is not None:
            raise MarketUnreachable("timed out")
        await self._pause()
        self._gatekeeper()
        return look()

    async def _change(
        self, what: str, act: Callable[[], Reply], *, lost_before: str, lost_after: str, unheard: Callable[[], object]
    ) -> Reply:
        """One changing call. The planned ending of this boundary (sweep), or the sky, may cut it before or after."""
        ending = self.sim.ending("market", what)
        if ending == "error before":
            raise MarketUnreachable("connection reset")
        await self._pause()
        if ending is None:
            self._gatekeeper()
            if self.sim.sky.strikes(lost_before):
                raise MarketUnreachable("timed out")
            if self.sim.sky.strikes(lost_after):
                unheard()
                await asyncio.sleep(30.0)
                raise MarketUnreachable("timed out")
        reply = act()
        self.sim.after(ending)
        if ending == "effect, then error":
            raise MarketUnreachable("connection reset")
        return reply

    def heal(self) -> None:
        """Clear sky: the key works, there is credit, hosts are back, everything is listed."""
        self.key_works, self.credit = True, CREDIT
        now = self.sim.clock.boot()
        for machine in self.machines.values():
            machine.advance()
            machine.hidden_until = machine.unlisted_until = machine.offline_until = 0.0
            machine.listed_from = min(machine.listed_from, now)
            machine.charged_from = min(machine.charged_from, now)
            disk = self.sim.boxes.box(machine.id)
            disk.silent_until, disk.swapped = 0.0, False
