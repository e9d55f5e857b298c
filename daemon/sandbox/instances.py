"""One rented instance and how it moves with time. Pure: the ledger stores it, `life` carries it out.

What the market was asked for (`intended`) and what the host reports (`status`) are two things; every mutator only
changes the first, and the second follows by the table of moves, seconds later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RUNNING, STOPPED = "running", "stopped"  # intended

LOADING, EXITED, REBOOTING, RECYCLING, CREATED, OFFLINE = (
    "loading", "exited", "rebooting", "recycling", "created", "offline",
)  # fmt: skip


@dataclass(frozen=True)
class Move:
    """The status that follows, and after how many seconds of a sandbox with time scale 1."""

    status: str
    after_s: float


# (intended, status) -> the next status. A pair that is missing is at rest. A status of None: being provisioned.
MOVES: dict[tuple[str, str | None], Move] = {
    (RUNNING, None): Move(LOADING, 1.0),
    (RUNNING, LOADING): Move(RUNNING, 3.0),
    (RUNNING, EXITED): Move(LOADING, 1.5),  # after a start the old status is still shown for a while
    (RUNNING, REBOOTING): Move(RUNNING, 2.0),
    (RUNNING, RECYCLING): Move(LOADING, 1.0),
    (STOPPED, None): Move(EXITED, 1.0),
    (STOPPED, CREATED): Move(EXITED, 1.0),
    (STOPPED, LOADING): Move(EXITED, 1.0),
    (STOPPED, RUNNING): Move(EXITED, 1.0),
    (STOPPED, REBOOTING): Move(EXITED, 1.0),
    (STOPPED, RECYCLING): Move(EXITED, 1.0),
}

SSHD_AFTER_S = 2.0  # `running` comes before a listening sshd
KEY_AFTER_S = 1.0  # attaching a key returns before sshd accepts it
GONE_AFTER_S = 2.0  # an accepted destroy is still listed for a while
KEPT_S = 48 * 3600.0  # data outlives the end of its contract by so much

BILLED_AS = {
    None: "loading", CREATED: "loading", LOADING: "loading",
    RUNNING: "running", REBOOTING: "running", RECYCLING: "running",
    EXITED: "stopped", OFFLINE: "offline",
}  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Prices fixed when the instance was rented: $/h for the GPUs and the disk, $/GB for traffic seen from the box."""

    gpu_hour: float
    disk_hour: float
    gb_in: float
    gb_out: float


@dataclass(frozen=True)
class Key:
    """An SSH key and the moment from which the box takes it."""

    id: int
    public_key: str
    effective_at: float


@dataclass(frozen=True)
class Instance:
    """A contract. Times are unix seconds; `ports` are the direct and the proxy port of its sshd."""

    id: int
    offer_id: int
    label: str | None
    image: str
    disk_gb: float
    env: dict[str, str]
    onstart: str
    runtype: str
    api_key: str
    rates: Rates
    created_at: float
    end_date: float
    intended: str
    changed_at: float  # when `intended` or `status` last changed: moves are counted from here
    is_bid: bool = False
    status: str | None = None
    status_msg: str = ""
    allocated: bool = True  # holds its GPUs; False while stopped or waiting for them
    needs_boot: bool = False  # the container has to be started, not only reached again
    ports: tuple[int, int] | None = None
    ssh_from: float = 0.0  # sshd listens from this moment
    listed_from: float = 0.0  # the market's replies leave it out before this moment
    offline_until: float = 0.0
    loading_until: float = 0.0  # the image is not pulled before
    stalled: bool = False  # at rest until a state is asked for: a broken host, a container that has exited
    told: str = ""  # the status that the market reports until `told_until`, whatever is true
    told_until: float = 0.0
    bids: tuple[tuple[float, float], ...] = ()  # since when, $/h: the bids after the first one
    outbid: bool = False  # stopped by the market; runs again by itself
    outbid_until: float = 0.0  # somebody bids more
    grace_s: float = KEPT_S  # from the contract's end to the deletion, before scaling
    lingers_s: float = 0.0  # listed so much longer than usual after its destroy
    address: str = "127.0.0.1"  # of the direct port
    keys: tuple[Key, ...] = ()
    destroyed_at: float | None = None
    gone: bool = False  # directory deleted, row no longer listed

    def offline(self, now: float) -> bool:
        return now < self.offline_until

    def shown_status(self, now: float) -> str | None:
        """The host's word; `offline` is computed by the market, never stored."""
        if now < self.told_until:
            return self.told
        return OFFLINE if self.offline(now) else self.status

    def billed_as(self, now: float) -> str | None:
        """The state of the ledger's open interval, None when billing has ended. What is told does not matter."""
        if self.destroyed_at is not None:
            return None
        return BILLED_AS[OFFLINE if self.offline(now) else self.status]

    def gpu_hour(self, at: float) -> float:
        """$/h of the GPUs at a time: an interruptible rental pays its bid of the day."""
        return next((price for since, price in reversed(self.bids) if since <= at), self.rates.gpu_hour)


def next_status(instance: Instance, now: float, time_scale: float) -> str | None:
    """The status due at `now`, or None when nothing moves yet."""
    move = MOVES.get((instance.intended, instance.status))
    waiting_for_gpu = instance.intended == RUNNING and not instance.allocated
    frozen = waiting_for_gpu or instance.stalled or instance.offline(now) or instance.destroyed_at is not None
    if move is None or frozen or (move.status == RUNNING and now < instance.loading_until):
        return None
    return move.status if now >= instance.changed_at + move.after_s / time_scale else None


def moved(instance: Instance, status: str, now: float, time_scale: float) -> Instance:
    """`instance` in its new status, with what that implies."""
    instance = replace(instance, status=status, changed_at=now)
    match status:
        case "running":
            return replace(instance, needs_boot=True, ssh_from=now + SSHD_AFTER_S / time_scale,
                           status_msg=f"success, running {instance.image}/ssh\n")  # fmt: skip
        case "exited":
            return replace(instance, allocated=False, ports=None, status_msg="")
        case "loading":
            return replace(instance, status_msg=f"pulling {instance.image}")
        case _:
            return replace(instance, status_msg="")
