"""The market as the daemon sees it. One implementation talks to Vast.ai (vast.py); tests bring their own.

Every mutating call is sent exactly once, with a deadline, and returns what the market answered verbatim: the caller has
stored the intent before and stores the answer before it interprets it. Errors say whether the request can have had an
effect: `MarketError.definite` true means it had none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from daemon.domain.market import Account, Charge, CreateRequest, Instance, Listing, Offer, OfferQuery
from daemon.market.permit import DestroyPermit


@dataclass(frozen=True)
class Reply:
    """The market's own words.

    `instance_id` is the `new_contract` of a create; `queued` marks a start that waits for its GPU, and bills once it
    has it.
    """

    status: int
    body: str
    instance_id: int | None = None
    queued: bool = False


class Market(Protocol):
    async def account(self) -> Account: ...

    async def search(self, query: OfferQuery) -> list[Offer]: ...

    async def create(self, request: CreateRequest) -> Reply:
        """Rent. Raises OfferGone, NoCredit, RateLimited, MarketRefused (definite) or MarketUnreachable (unknown).

        An error whose body carries `new_contract` is returned as a Reply with that id: something exists.
        """
        ...

    async def show(self, instance_id: int) -> Instance | None:
        """None only when the market itself says the contract is null or unknown, never for a bare 404."""
        ...

    async def listing(self) -> Listing:
        """Every page of the list plus an account probe. Never raises for a bad answer: it is returned untrusted."""
        ...

    async def start(self, instance_id: int) -> Reply: ...

    async def stop(self, instance_id: int) -> Reply: ...

    async def label(self, instance_id: int, label: str) -> Reply: ...

    async def attach_key(self, instance_id: int, public_key: str) -> Reply: ...

    async def charges(self, since_ms: int) -> list[Charge]: ...

    async def logs(self, instance_id: int, tail: int) -> str: ...

    async def destroy(self, permit: DestroyPermit) -> Reply: ...

    async def aclose(self) -> None: ...
