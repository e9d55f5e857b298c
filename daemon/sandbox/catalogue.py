"""What the sandbox has to let: a fixed set of machines and the offers they give while GPUs are free.

Pure. A machine shows as several offers (1x, 2x, 4x, 8x); an offer disappears while it is rented or while too few of its
machine's GPUs are free, and comes back. Prices and sizes are plausible, not anybody's; units are the market's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HOURS_PER_MONTH = 720  # the market prices storage per GB and a month of this length
DAY_S = 86_400
SIZES = (1, 2, 4, 8)  # GPUs of one offer
BID_SHARE = 0.55  # floor of an interruptible price, as a share of the on-demand price


@dataclass(frozen=True)
class Machine:
    """One physical machine. `gpu_ram` in MB per GPU, `price` in $/h per GPU, `storage` in $/GB/month, `days` left."""

    id: int
    host: int
    gpu: str
    gpus: int
    gpu_ram: int
    price: float
    cuda: float
    geolocation: str
    reliability: float = 0.99
    verification: str = "verified"
    storage: float = 0.15
    inet_up_cost: float = 0.002
    inet_down_cost: float = 0.002
    inet_mbps: float = 2_000.0
    disk_gb: float = 2_000.0
    days: float = 30.0
    direct_ports: int = 100
    datacenter: bool = False
    compute_cap: int = 900


MACHINES: dict[int, Machine] = {
    machine.id: machine
    for machine in (
        Machine(101, 11, "H100 SXM", 8, 81_559, 2.10, 12.8, "Sweden, SE", 0.996, datacenter=True, disk_gb=12_000),
        Machine(102, 12, "H100 SXM", 8, 81_559, 2.24, 12.8, "Iceland, IS", 0.993, disk_gb=8_000),
        Machine(103, 13, "H100 SXM", 4, 81_559, 1.98, 12.6, "Texas, US", 0.971),
        Machine(104, 14, "H100 SXM", 8, 81_559, 1.75, 12.8, "Quebec, CA", 0.88, "unverified"),
        Machine(105, 15, "H100 SXM", 1, 81_559, 2.05, 12.8, "Norway, NO", 0.995, days=0.4),
        Machine(106, 11, "H100 PCIE", 4, 81_559, 1.72, 12.4, "Sweden, SE", 0.992),
        Machine(107, 16, "H100 PCIE", 1, 81_559, 1.69, 12.2, "Germany, DE", 0.982, direct_ports=0),
        Machine(108, 17, "H100 NVL", 2, 95_830, 1.95, 12.6, "Finland, FI", 0.994),
        Machine(109, 18, "H200", 8, 143_771, 3.05, 12.8, "Utah, US", 0.997, datacenter=True, disk_gb=16_000),
        Machine(110, 18, "H200 NVL", 4, 143_771, 2.85, 12.8, "Utah, US", 0.99),
        Machine(111, 19, "A100 SXM4", 8, 81_920, 1.05, 12.4, "Czechia, CZ", 0.991, compute_cap=800),
        Machine(112, 20, "A100 SXM4", 4, 40_960, 0.78, 12.2, "Poland, PL", 0.985, compute_cap=800),
        Machine(113, 21, "A100 PCIE", 2, 81_920, 0.92, 12.2, "France, FR", 0.989, compute_cap=800),
        Machine(114, 22, "L40S", 4, 46_068, 0.68, 12.4, "Spain, ES", 0.987, compute_cap=890),
        Machine(115, 23, "L40", 2, 46_068, 0.59, 12.2, "Italy, IT", 0.98, compute_cap=890),
        Machine(116, 24, "RTX 6000Ada", 4, 49_140, 0.63, 12.4, "Oregon, US", 0.99, compute_cap=890),
        Machine(117, 25, "RTX A6000", 4, 49_140, 0.41, 12.2, "Bulgaria, BG", 0.978, compute_cap=860),
        Machine(118, 26, "RTX 5090", 8, 32_607, 0.52, 12.8, "Vietnam, VN", 0.983, compute_cap=1200),
        Machine(119, 27, "RTX 5090", 2, 32_607, 0.48, 12.8, "Estonia, EE", 0.994, compute_cap=1200),
        Machine(120, 28, "RTX 4090", 8, 24_564, 0.36, 12.6, "Hungary, HU", 0.991, compute_cap=890),
        Machine(121, 29, "RTX 4090", 4, 24_564, 0.31, 12.4, "Portugal, PT", 0.966, compute_cap=890),
        Machine(122, 30, "RTX 4090", 1, 24_564, 0.29, 12.2, ", US", 0.6, "unverified", compute_cap=890),
        Machine(123, 31, "RTX 3090", 4, 24_576, 0.17, 12.2, "Romania, RO", 0.975, compute_cap=860),
        Machine(124, 32, "RTX 3090", 1, 24_576, 0.14, 11.8, "Latvia, LV", 0.99, "deverified", compute_cap=860),
    )
}


@dataclass(frozen=True)
class Offer:
    """`gpus` of one machine, at one id that never changes."""

    machine: Machine
    gpus: int

    @property
    def id(self) -> int:
        return self.machine.id * 100 + self.gpus

    @property
    def gpu_price(self) -> float:
        """$/h on demand, all GPUs of the offer, without storage."""
        return self.machine.price * self.gpus

    @property
    def min_bid(self) -> float:
        return self.gpu_price * BID_SHARE

    def storage_price(self, disk_gb: float) -> float:
        """$/h for `disk_gb` of disk."""
        return self.machine.storage * disk_gb / HOURS_PER_MONTH


OFFERS: dict[int, Offer] = {
    offer.id: offer
    for machine in MACHINES.values()
    for offer in (Offer(machine, gpus) for gpus in SIZES if gpus <= machine.gpus)
}


def available(rented: Collection[int], gpus_taken: Mapping[int, int]) -> Iterator[Offer]:
    """The offers that can be rented now. `rented`: offer ids in use; `gpus_taken`: GPUs in use by machine id."""
    for offer in OFFERS.values():
        free = offer.machine.gpus - gpus_taken.get(offer.machine.id, 0)
        if offer.id not in rented and offer.gpus <= free:
            yield offer


def columns(
    offer: Offer, ask_id: int, *, disk_gb: float, bid: bool, now: float, rented: bool = False
) -> dict[str, Any]:
    """The offer as the market lists it under `ask_id`, priced for `disk_gb`; under `bid` by the minimum bid."""
    machine = offer.machine
    share = offer.gpus / machine.gpus
    base = offer.min_bid if bid else offer.gpu_price
    storage = offer.storage_price(disk_gb)
    total = base + storage
    dlperf = offer.gpus * machine.gpu_ram / 400
    hourly = {"gpuCostPerHour": base, "diskHour": storage, "totalHour": total, "discountTotalHour": 0.0,
              "discountedTotalPerHour": total}  # fmt: skip
    return {
        "id": ask_id,
        "ask_contract_id": ask_id,
        "bundle_id": machine.id * 7,
        "machine_id": machine.id,
        "host_id": machine.host,
        "gpu_name": machine.gpu,
        "num_gpus": offer.gpus,
        "gpu_frac": share,
        "gpu_ram": machine.gpu_ram,
        "gpu_total_ram": machine.gpu_ram * offer.gpus,
        "cpu_name": "EPYC 9554",
        "cpu_cores": machine.gpus * 24,
        "cpu_cores_effective": float(offer.gpus * 24),
        "cpu_ram": machine.gpus * 180_000,
        "disk_space": machine.disk_gb * share,
        "disk_bw": 3_000.0,
        "disk_name": "nvme",
        "inet_down": machine.inet_mbps,
        "inet_up": machine.inet_mbps,
        "inet_down_cost": machine.inet_down_cost,
        "inet_up_cost": machine.inet_up_cost,
        "storage_cost": machine.storage,
        "storage_total_cost": storage,
        "dph_base": base,
        "dph_total": total,
        "discounted_dph_total": total,
        "credit_discount_max": 0.0,
        "min_bid": offer.min_bid,
        "reliability": machine.reliability,
        "reliability2": machine.reliability,
        "expected_reliability": machine.reliability,
        "verification": machine.verification,
        "direct_port_count": machine.direct_ports,
        "static_ip": True,
        "public_ipaddr": "127.0.0.1",
        "cuda_max_good": machine.cuda,
        "driver_version": "570.86.15",
        "driver_vers": 570_086_015,
        "compute_cap": machine.compute_cap,
        "duration": machine.days * DAY_S,
        "start_date": now,
        "end_date": now + machine.days * DAY_S,
        "geolocation": machine.geolocation,
        "hosting_type": int(machine.datacenter),
        "dlperf": dlperf,
        "dlperf_per_dphtotal": dlperf / total,
        "score": dlperf / total * machine.reliability,
        "total_flops": offer.gpus * 60.0,
        "flops_per_dphtotal": offer.gpus * 60.0 / total,
        "pcie_bw": 24.0,
        "gpu_mem_bw": 2_500.0,
        "gpu_display_active": False,
        "rentable": not rented,
        "rented": rented,
        "is_bid": bid,
        "external": False,
        "vms_enabled": False,
        "cluster_id": None,
        "resource_type": "gpu",
        "search": hourly,
        "instance": hourly,
    }
