"""The Vast client against the sandbox: the whole life of an instance, limits on, and replies that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from sandboxes import OFFER, TIME_SCALE, SandboxProcess, until

from daemon.clock import AHEAD_MS, SystemClock
from daemon.domain.estimate import estimate
from daemon.domain.market import CreateRequest, Instance
from daemon.domain.offers import query, rank, widened
from daemon.domain.spec import JobSpec, Limits, Machine, Training
from daemon.errors import MarketUnreachable, OfferGone
from daemon.market.permit import DestroyPermit, PermitKind
from daemon.market.vast import Vast
from daemon.settings import ApiKey

CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
DESTROY = {"method": "DELETE", "path": "/api/v0/instances/*"}

SPEC = JobSpec(
    version=1,
    name="bot",
    model="owner/base-7B",
    sft=Training(data="sft.jsonl"),
    machine=Machine(gpu=("H100",)),
    limits=Limits(price=2_500_000),
)
expected = partial(estimate, SPEC, {"sft": 1000}, line_mbps=100.0)


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[SandboxProcess]:
    process = SandboxProcess(tmp_path / "sandbox", "--image", "box=/usr/bin/python3")
    yield process
    await process.end()


@pytest.fixture
async def vast(sandbox: SandboxProcess) -> AsyncIterator[Vast]:
    client = Vast(sandbox.url, ApiKey(sandbox.api_key, "a test"), SystemClock(), TIME_SCALE)
    yield client
    await client.aclose()


def rental(offer: int = OFFER, label: str = "hp-i-j-n") -> CreateRequest:
    return CreateRequest(offer, "box", 40, label, "", {})


async def reaches(vast: Vast, instance: int, status: str) -> Instance:
    async def there() -> Instance | None:
        shown = await vast.show(instance)
        return shown if shown and shown.actual_status == status else None

    shown = await until(there)
    assert shown is not None
    return shown


async def test_an_offer_is_found_ranked_and_explained(vast: Vast) -> None:
    """The strict search gives what can be rented; the wide one gives the others with their reasons."""
    asked = query(SPEC, expected())
    ranked = partial(rank, spec=SPEC, asked=asked, estimate=expected, now_ms=SystemClock().wall_ms())

    strict = ranked(await vast.search(asked))
    wide = ranked(await vast.search(widened(asked)))

    assert strict.rejected == ()
    assert strict.chosen
    assert {offer.id for offer in wide.chosen} == {offer.id for offer in strict.chosen}
    reasons = {reason.split(",")[0].split(" in ")[0] for _, reason in wide.rejected}
    assert {"machine is not verified", "rental ends"} <= reasons


async def test_the_life_of_an_instance(vast: Vast, sandbox: SandboxProcess) -> None:
    """Create, running, key, label, stop, start, destroy, gone; the sandbox's ledger agrees."""
    reply = await vast.create(rental())
    instance = reply.instance_id
    assert instance is not None

    running = await reaches(vast, instance, "running")
    await vast.attach_key(instance, sandbox.key.export_public_key().decode())
    again = await vast.attach_key(instance, sandbox.key.export_public_key().decode())
    await vast.label(instance, "hp-i-j-renamed")
    await vast.stop(instance)
    await reaches(vast, instance, "exited")
    started = await vast.start(instance)
    await reaches(vast, instance, "running")
    listing = await vast.listing()
    assert listing.market_ms is not None and abs(listing.market_ms - SystemClock().wall_ms()) < AHEAD_MS
    logs = await vast.logs(instance, 10)
    await vast.destroy(DestroyPermit(instance, PermitKind.UNUSED, None, operation_id=1))
    await sandbox.gone(instance)
    shown = await vast.show(instance)
    repeated = await vast.destroy(DestroyPermit(instance, PermitKind.UNUSED, None, operation_id=2))

    assert running.direct is not None
    assert running.price_per_hour is not None
    assert again.status in (200, 400)
    assert not started.queued
    assert listing.trusted
    assert [(i.id, i.label) for i in listing.instances] == [(instance, "hp-i-j-renamed")]
    assert isinstance(logs, str)
    assert shown is None
    assert repeated.status == 404
    assert (await vast.listing()).instances == ()
    assert (await sandbox.ledger(instance))["destroyed_at"] is not None


async def test_a_taken_offer_is_gone(vast: Vast) -> None:
    """Renting the same offer again is refused as taken, and nothing else exists."""
    first = await vast.create(rental())

    with pytest.raises(OfferGone):
        await vast.create(rental(label="hp-i-j-other"))

    assert [i.id for i in (await vast.listing()).instances] == [first.instance_id]


async def test_a_lost_create_is_found_by_its_label(vast: Vast, sandbox: SandboxProcess) -> None:
    """The reply never comes, one request was sent, and the listing shows the instance under our label."""
    await sandbox.fault("reply_lost", match=CREATE)

    with pytest.raises(MarketUnreachable):
        await vast.create(rental(label="hp-i-j-lost"))

    found = await vast.listing()
    assert [i.label for i in found.instances] == ["hp-i-j-lost"]
    assert sum(r["method"] == "PUT" and "/asks/" in r["path"] for r in await sandbox.journal()) == 1


async def test_a_lost_destroy_is_not_repeated(vast: Vast, sandbox: SandboxProcess) -> None:
    """The client says that it does not know; it sent one DELETE."""
    instance = (await vast.create(rental())).instance_id
    assert instance is not None
    await sandbox.fault("reply_lost", match=DESTROY)

    with pytest.raises(MarketUnreachable):
        await vast.destroy(DestroyPermit(instance, PermitKind.UNUSED, None, operation_id=1))

    await sandbox.gone(instance)
    assert sum(r["method"] == "DELETE" for r in await sandbox.journal()) == 1


async def test_thirty_instances_are_all_listed(vast: Vast, sandbox: SandboxProcess) -> None:
    """More than a page: none is missing, and the listing is trusted."""
    rented = set()
    for n, offer in enumerate(await sandbox.offers(order=[["num_gpus", "asc"]])):
        if len(rented) == 30:
            break
        try:
            rented.add((await vast.create(rental(offer["id"], f"hp-i-j-{n}"))).instance_id)
        except OfferGone:
            continue  # the machine's GPUs are taken

    listing = await vast.listing()

    assert listing.trusted
    assert len(rented) == 30
    assert {i.id for i in listing.instances} == rented


async def test_asking_a_lot_is_never_refused(vast: Vast, sandbox: SandboxProcess) -> None:
    """Twelve listings and shows at once: the limiter spaces them, the market refuses none."""
    await asyncio.gather(*(vast.listing() for _ in range(12)), *(vast.show(1) for _ in range(4)))

    assert [r["status"] for r in await sandbox.journal() if r["status"] == 429] == []
