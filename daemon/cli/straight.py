"""The last resort: machines straight from the market, by label, where neither daemon nor database can say."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

from daemon.clock import SystemClock
from daemon.domain import ids
from daemon.domain.market import Instance, Listing
from daemon.domain.money import decimal_string
from daemon.errors import MarketUnreachable
from daemon.settings import Settings, api_key
from daemon.store import high_water
from daemon.store.shapes import CURRENCY, Attention, Leases, LeaseView, MoneyStrip, iso


def leases(loaded: Settings) -> Leases:
    """Every machine of the account with a label of ours; where nobody knows our install id, of any homeport.

    Raises CredentialsRefused without a key, MarketUnreachable when the market's answer cannot be trusted.
    """
    listing = asyncio.run(_listing(loaded))
    if not listing.trusted:
        raise MarketUnreachable(f"the market's list cannot be trusted: {listing.problem}", hint="jobctl doctor")
    install = _install(loaded)
    named = ((instance, ids.label_install(instance.label)) for instance in listing.instances)
    ours = [instance for instance, of in named if of is not None and install in (None, of)]
    rate = sum(_rate(instance) for instance in ours)
    return Leases(
        schema="homeport.leases/1",
        leases=[_view(instance) for instance in ours],
        money=MoneyStrip(
            machines=len(ours),
            unsure=0,
            rate=decimal_string(rate),
            cost=decimal_string(0),
            credit=None if listing.credit is None else decimal_string(listing.credit),
            hours_left=listing.credit / rate if listing.credit is not None and rate else None,
            currency=CURRENCY,
            as_of=iso(time.time_ns() // 1_000_000),
            problem=None,
            kept_awake=False,
        ),
        attention=[_attention(instance) for instance in ours],
    )


def _install(loaded: Settings) -> str | None:
    """By which name machines are ours, from the file that outlives the database; None: nobody knows any more."""
    try:
        known = high_water.read(loaded.paths.database.with_name(high_water.NAME))
    except ValueError:  # a file that makes no sense names nobody
        return None
    return known.install or None if known else None


async def _listing(loaded: Settings) -> Listing:
    import stamina

    from daemon.market.vast import Vast

    stamina.instrumentation.set_on_retry_hooks(())  # they would print between the lines of our JSON
    key = api_key(loaded.paths)
    async with aclosing(Vast(loaded.market_url, key, SystemClock(), loaded.time_scale)) as market:
        return await market.listing()


def _rate(instance: Instance) -> int:
    """Micro-dollars an hour: that of a running machine, unless it is said to be stopped."""
    halted = instance.actual_status in ("stopped", "exited") and instance.intended_status != "running"
    return (instance.storage_per_hour if halted else instance.price_per_hour) or 0


def _view(instance: Instance) -> LeaseView:
    """What the market alone knows; cost and history lie in the database."""
    count = f"{instance.num_gpus}x " if instance.num_gpus > 1 else ""
    return LeaseView(
        lease=0,  # none of ours: what it has cost is not known
        instance=instance.id,
        job=ids.label_job(instance.label),
        state="LIVE",
        status=instance.actual_status,
        status_message=instance.status_msg,
        gpu=f"{count}{instance.gpu_name}",
        price_per_hour=decimal_string(instance.price_per_hour or 0),
        storage_per_hour=decimal_string(instance.storage_per_hour or 0),
        rate=decimal_string(_rate(instance)),
        cost=decimal_string(0),
        currency=CURRENCY,
        last_seen=iso(time.time_ns() // 1_000_000),
        contract_ends=iso(instance.end_ms),
        gpu_util=instance.gpu_util,
        destroy_requested=None,
    )


def _attention(instance: Instance) -> Attention:
    return Attention(
        kind="ORPHAN",
        urgent=True,
        job=ids.label_job(instance.label),
        instance=instance.id,
        text=f"instance {instance.id} has the label of a job, and no database here can be asked about it, "
        f"may bill ${decimal_string(_rate(instance))}/h",
        hint="jobctl doctor   says what to do; a machine of another computer is that one's",
    )
