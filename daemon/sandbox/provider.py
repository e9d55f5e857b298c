"""The market's side of a rental: what each verb of the API does to the ledger.

Every verb returns at once; only `intended` changes here, and `life` makes the world follow. Refusals are `Refusal`s in
the market's own words. Nothing here knows about HTTP beyond a status number.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from . import catalogue, instances
from .catalogue import DAY_S, MACHINES, OFFERS, Offer
from .images import Images
from .instances import RUNNING, STOPPED, Instance, Key, Rates
from .ledger import Ledger

MIN_DISK_GB = 8.0
MAX_LABEL_AT_CREATE, MAX_LABEL = 256, 1024
MAX_SCRIPT = 4096  # args + args_str + onstart, characters
MAX_ENV, MAX_ENV_TOTAL = 256, 32_768  # characters of one variable, and of all
EDITION = 1_000_000  # distance of the ids of two editions of the offers
# The reply to a start that waits for its GPUs: with status 200, and the change holds all the same.
QUEUED = {
    "success": False,
    "error": "resources_unavailable",
    "msg": "Required resources are currently unavailable, state change queued.",
}


class Refusal(Exception):
    """The market says no: HTTP status, slug, text, and what else the body carries."""

    def __init__(self, status: int, error: str, msg: str, **more: Any) -> None:
        super().__init__(msg)
        self.status = status
        self.body = {"success": False, "error": error, "msg": msg, **more}


@dataclass(frozen=True)
class Terms:
    """What a create call asks for, checked."""

    image: str
    disk_gb: float
    label: str | None
    env: dict[str, str]
    onstart: str
    runtype: str
    bid: float | None
    target_state: str
    cancel_unavail: bool


def terms(body: dict[str, Any]) -> Terms:
    """Read the body of a create call. Raises Refusal with the market's words."""

    def refuse(msg: str, error: str = "invalid_args") -> Refusal:
        return Refusal(400, error, f"error 400/3467: {msg}")

    image = str(body.get("image") or "")
    if not image or len(image) > 1024:
        raise refuse("image is required, at most 1024 characters")
    env = body.get("env") or {}
    if not isinstance(env, dict):
        raise refuse("env must be an object")
    lengths = [len(f"{name}={value}") for name, value in env.items()]
    if any(length > MAX_ENV for length in lengths):
        raise refuse(f"a variable of env is longer than {MAX_ENV}")
    if sum(lengths) > MAX_ENV_TOTAL:
        raise refuse(f"env is longer than {MAX_ENV_TOTAL} in all")
    onstart = str(body.get("onstart") or "")
    args = "".join(map(str, body.get("args") or [])) + str(body.get("args_str") or "")
    if len(onstart) + len(args) > MAX_SCRIPT:
        raise refuse(f"args and onstart are longer than {MAX_SCRIPT} together")
    label = None if body.get("label") is None else str(body["label"])
    if label is not None and len(label) > MAX_LABEL_AT_CREATE:
        raise refuse(f"label is longer than {MAX_LABEL_AT_CREATE}", "label_too_long")
    disk_gb = float(body.get("disk") or MIN_DISK_GB)
    if not disk_gb >= MIN_DISK_GB:  # nor is "nan", which is less than nothing
        raise refuse(f"disk must be at least {MIN_DISK_GB:g}")
    bid = None if body.get("price") is None else float(body["price"])
    if bid is not None:
        check_bid(bid)
    return Terms(
        image=image,
        disk_gb=disk_gb,
        label=label,
        env={str(name): str(value) for name, value in env.items()},
        onstart=onstart,
        runtype=str(body.get("runtype") or "ssh"),
        bid=bid,
        target_state=str(body.get("target_state") or RUNNING),
        cancel_unavail=bool(body.get("cancel_unavail", bid is None)),
    )


def check_bid(bid: float) -> None:
    """Raises Refusal for a price outside of what the market takes."""
    if not 0.001 <= bid <= 128:
        raise Refusal(400, "invalid_price", "error 400/3467: price out of range")


class Provider:
    """The verbs, over one ledger."""

    def __init__(self, ledger: Ledger, images: Images, time_scale: float) -> None:
        self.ledger = ledger
        self.images = images
        self.time_scale = time_scale
        self._edition = 0  # of the offers: each has other ids

    # What there is

    def gpus_taken(self, but: int | None = None) -> Counter[int]:
        """GPUs in use by machine id, leaving out the instance `but`."""
        taken: Counter[int] = Counter()
        for instance in self.ledger.existing():
            if instance.allocated and instance.destroyed_at is None and instance.id != but:
                offer = OFFERS[instance.offer_id]
                taken[offer.machine.id] += offer.gpus
        return taken

    def offers(self) -> Iterator[Offer]:
        rented = {i.offer_id for i in self.ledger.existing() if i.allocated and i.destroyed_at is None}
        return catalogue.available(rented, self.gpus_taken())

    def relist(self) -> None:
        """Give every offer another id (the fault offers_relisted)."""
        self._edition += 1

    def ask_id(self, offer: Offer) -> int:
        """The id under which an offer is listed today."""
        return offer.id + self._edition * EDITION

    def asked_for(self, ask_id: int) -> Offer | None:
        return OFFERS.get(ask_id - self._edition * EDITION)

    def visible(self, instance_id: int, now: float) -> Instance | None:
        """The instance as the market shows it, None when gone, unknown or not shown yet."""
        instance = self.ledger.get(instance_id)
        return None if instance is None or instance.gone or now < instance.listed_from else instance

    def existing(self, instance_id: int) -> Instance:
        """The instance a verb acts on. Raises Refusal when there is none, or it is being destroyed."""
        instance = self.ledger.get(instance_id)
        if instance is None or instance.destroyed_at is not None:
            raise Refusal(404, "no_such_instance", f"Instance {instance_id} not found.")
        return instance

    # Rent, return

    def create(
        self,
        ask_id: int,
        asked: Terms,
        *,
        accept_taken: bool = False,
        cannot_start: bool = False,
        listed_after_s: float = 0.0,
    ) -> Instance:
        """Rent. Raises Refusal; one of them (a bid under the floor) has rented a stopped instance all the same.

        The keywords are the faults double_accept, cannot_start and late_listing.
        """
        now = time.time()
        offer = self.asked_for(ask_id)
        free = offer in list(self.offers())
        if offer is None or not (free or accept_taken or not asked.cancel_unavail):
            raise Refusal(404, "invalid_args", "error 404/3603: no_such_ask Instance type by id "
                          f"{ask_id} is not available.", ask_id=ask_id)  # fmt: skip
        if cannot_start and asked.cancel_unavail:
            raise Refusal(410, "no_such_ask", f"error 410/3907: {ask_id} is no longer available.", ask_id=ask_id)
        if asked.disk_gb > offer.machine.disk_gb * offer.gpus / offer.machine.gpus:
            raise Refusal(400, "invalid_args", "error 400/3467: disk exceeds the offer's disk_space", ask_id=ask_id)
        if self.ledger.credit(now) <= 0:
            raise Refusal(400, "insufficient_credit", "Insufficient credit to rent this instance.", ask_id=ask_id)
        too_low = asked.bid is not None and asked.bid < offer.min_bid
        startable = (free or accept_taken) and not cannot_start
        runs = startable and not too_low and asked.target_state == RUNNING
        instance = Instance(
            id=self.ledger.next_id(),
            offer_id=offer.id,
            label=asked.label,
            image=asked.image,
            disk_gb=asked.disk_gb,
            env=asked.env,
            onstart=asked.onstart,
            runtype=asked.runtype,
            api_key=secrets.token_hex(32),
            rates=Rates(
                gpu_hour=offer.gpu_price if asked.bid is None else asked.bid,
                disk_hour=offer.storage_price(asked.disk_gb),
                gb_in=offer.machine.inet_down_cost,
                gb_out=offer.machine.inet_up_cost,
            ),
            created_at=now,
            end_date=now + MACHINES[offer.machine.id].days * DAY_S,
            intended=RUNNING if runs else STOPPED,
            changed_at=now,
            is_bid=asked.bid is not None,
            outbid=too_low and asked.target_state == RUNNING,
            allocated=runs,
            listed_from=now + listed_after_s,
            keys=self._account_keys(now),
        )
        self.ledger.save(instance, now)
        if too_low:
            raise Refusal(400, "invalid_price", f"bid is below the minimum of {offer.min_bid:.3f}",
                          ask_id=ask_id, new_contract=instance.id)  # fmt: skip
        return instance

    def _account_keys(self, now: float) -> tuple[Key, ...]:
        """The account's keys reach new instances only."""
        effective = now + instances.KEY_AFTER_S / self.time_scale
        return tuple(Key(row["id"], row["public_key"], effective) for row in self.ledger.account_keys())

    def destroy(self, instance_id: int, *, lingers_s: float = 0.0) -> None:
        """Accept a destroy: billing ends now; `life` deletes the disk, and the row a little later."""
        now = time.time()
        self.ledger.save(replace(self.existing(instance_id), destroyed_at=now, lingers_s=lingers_s), now)

    # Change

    def set_state(self, instance_id: int, state: str) -> bool:
        """Start or stop. False: the GPUs are taken, the start is queued and will bill whenever they become free."""
        instance = self.existing(instance_id)
        if state not in (RUNNING, STOPPED):
            raise Refusal(400, "invalid_args", f"error 400/3467: invalid state {state}")
        now = time.time()
        starts = state == RUNNING
        if starts and now >= instance.end_date:
            raise Refusal(400, "invalid_args", f"the contract of instance {instance_id} has ended")
        if starts and self.lost_its_bid(instance, now):
            self.ledger.change(instance_id, outbid=True)
            return False
        allocated = instance.allocated or (starts and self.gpus_free(instance))
        asked = {"intended": state, "allocated": allocated, "stalled": False, "outbid": False}
        if any(getattr(instance, name) != value for name, value in asked.items()):
            self.ledger.change(instance_id, **asked, changed_at=now)
        return allocated or not starts

    def lost_its_bid(self, instance: Instance, now: float) -> bool:
        """Whether somebody bids more, or the bid is below the floor."""
        floor = OFFERS[instance.offer_id].min_bid
        return now < instance.outbid_until or (instance.is_bid and instance.gpu_hour(now) < floor)

    def set_bid(self, instance_id: int, price: float | None) -> None:
        """Change a bid, in $/h; None bids what wins. A higher one beats whoever had outbid it."""
        instance, now = self.existing(instance_id), time.time()
        if not instance.is_bid:
            raise Refusal(400, "invalid_args", f"instance {instance_id} is not interruptible")
        before = instance.gpu_hour(now)
        bid = max(before, OFFERS[instance.offer_id].min_bid) if price is None else price
        check_bid(bid)
        beats = price is None or bid > before
        bids = (*instance.bids, (now, bid))
        self.ledger.save(replace(instance, bids=bids, outbid_until=0.0 if beats else instance.outbid_until), now)

    def gpus_free(self, instance: Instance) -> bool:
        """Whether the GPUs an unallocated instance waits for can be had."""
        offer = OFFERS[instance.offer_id]
        return self.gpus_taken(but=instance.id)[offer.machine.id] + offer.gpus <= offer.machine.gpus

    def set_label(self, instance_id: int, label: str) -> None:
        if len(label) > MAX_LABEL:
            raise Refusal(400, "label_too_long", f"label is longer than {MAX_LABEL}")
        self.existing(instance_id)
        self.ledger.change(instance_id, label=label)

    def restart(self, instance_id: int, *, how: str) -> None:
        """Reboot (keeps the disk) or recycle (does not), `how` being the status shown meanwhile."""
        instance = self.existing(instance_id)
        if instance.status != RUNNING:
            raise Refusal(400, "invalid_args", f"instance {instance_id} is not running")
        self.ledger.change(instance_id, status=how, changed_at=time.time(), ports=None)

    # Keys of one instance

    def attach_key(self, instance_id: int, public_key: str, *, late_s: float = 0.0) -> None:
        """Accepted at once, effective a moment later."""
        instance = self.existing(instance_id)
        key = public_key.strip()
        if not key.startswith(("ssh-", "ecdsa-", "sk-")) or "\n" in key:
            raise Refusal(400, "invalid_args", "Invalid SSH public key.")
        if any(known.public_key == key for known in instance.keys):
            raise Refusal(400, "duplicate", "SSH key already attached to this instance (duplicate).")
        key_id = max((known.id for known in instance.keys), default=0) + 1
        effective_at = time.time() + instances.KEY_AFTER_S / self.time_scale + late_s
        self.ledger.change(instance_id, keys=(*instance.keys, Key(key_id, key, effective_at)))

    def detach_key(self, instance_id: int, key_id: int) -> None:
        instance = self.existing(instance_id)
        kept = tuple(key for key in instance.keys if key.id != key_id)
        if len(kept) == len(instance.keys):
            raise Refusal(404, "not_found", f"SSH key {key_id} not found.")
        self.ledger.change(instance_id, keys=kept)
