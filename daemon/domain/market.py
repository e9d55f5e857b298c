"""What the market lists and reports, in our units: micro-dollars, milliseconds, megabytes.

The edge (market/wire.py) parses the market's own words into these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HALTED = ("stopped", "exited")
UNREACHABLE = ("offline", "unknown")
ON_GPU = "exited, on its GPU"  # ours: see Instance.status


@dataclass(frozen=True)
class Offer:
    """A rentable listing. Prices in micro-dollars; `price_per_hour` covers all GPUs and the disk searched with."""

    id: int
    machine_id: int
    host_id: int
    gpu_name: str
    num_gpus: int
    gpu_ram_mb: int  # per GPU
    price_per_hour: int
    inet_down_per_gb: int  # what the market bills for bytes that enter the box
    inet_up_per_gb: int
    disk_space_gb: float
    inet_up_mbps: float
    reliability: float
    verified: bool
    rentable: bool
    direct_port_count: int
    cuda_max_good: float | None
    duration_s: float | None  # rental time left
    end_date_ms: int | None
    geolocation: str


@dataclass(frozen=True)
class Instance:
    """What the market reports about something rented. Absent figures are None; an unknown status is kept as it came."""

    id: int
    label: str | None
    actual_status: str | None
    intended_status: str | None
    cur_state: str | None
    status_msg: str
    machine_id: int | None
    host_id: int | None
    gpu_name: str
    num_gpus: int
    price_per_hour: int | None
    storage_per_hour: int | None
    start_ms: int | None  # contract creation
    end_ms: int | None
    direct: tuple[str, int] | None  # address and port of the mapped sshd
    proxy: tuple[str, int] | None
    gpu_util: float | None
    env: dict[str, str] = field(default_factory=dict, compare=False, repr=False)  # as create gave it; holds a secret
    raw: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_running(self) -> bool:
        return self.actual_status == "running"

    @property
    def status(self) -> str | None:
        """`actual_status`, with a word of its own where that calls it halted and its GPU is not given back.

        The market may say `exited` through a whole login, and for minutes after a start: such a machine may run, and
        bills as if it did.
        """
        return ON_GPU if self.actual_status in HALTED and self.cur_state == "running" else self.actual_status


@dataclass(frozen=True)
class Listing:
    """All instances of the account.

    Only a trusted one is evidence: HTTP 200, every page, integer ids, account probe passed in the same pass.
    """

    trusted: bool
    instances: tuple[Instance, ...] = ()
    problem: str = ""
    credit: int | None = None  # micro-dollars, from the account probe of the same pass
    market_ms: int | None = None  # what the market's clock showed then, UTC
    account: int | None = None  # whose list it is: with another account's key all that is rented looks gone

    def by_id(self, instance_id: int) -> Instance | None:
        return next((i for i in self.instances if i.id == instance_id), None)


@dataclass(frozen=True)
class OfferQuery:
    gpu_names: tuple[str, ...]  # empty: any
    num_gpus: int
    min_gpu_ram_mb: int
    disk_gb: int
    max_price_per_hour: int | None
    min_duration_s: float
    verified: bool
    min_cuda: float | None = None
    min_reliability: float = 0.9


@dataclass(frozen=True)
class CreateRequest:
    offer_id: int
    image: str
    disk_gb: int
    label: str
    onstart: str
    env: dict[str, str]


@dataclass(frozen=True)
class Account:
    user_id: int
    credit: int


@dataclass(frozen=True)
class Charge:
    instance_id: int | None
    label: str | None
    amount: int
    start_ms: int | None
    end_ms: int | None
