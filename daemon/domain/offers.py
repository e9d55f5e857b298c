"""Which offers fit a job. Pure."""

from __future__ import annotations

from collections.abc import Callable

from daemon.domain import money
from daemon.domain.market import Offer, OfferQuery

GB = 1000  # MB

# What a search asks for, checked here again: the market does not always apply its own filters.
CHECKS: tuple[Callable[[Offer, OfferQuery], str | None], ...] = (
    lambda o, q: None if o.rentable else "rented by somebody else",
    lambda o, q: None if not q.gpu_names or o.gpu_name in q.gpu_names else f"GPU is {o.gpu_name}",
    lambda o, q: None if o.num_gpus == q.num_gpus else f"{o.num_gpus} GPUs, not {q.num_gpus}",
    lambda o, q: _least("GPU memory", o.gpu_ram_mb / GB, q.min_gpu_ram_mb / GB, " GB"),
    lambda o, q: _least("free disk", o.disk_space_gb, q.disk_gb, " GB"),
    lambda o, q: None if o.verified or not q.verified else "machine is not verified",
    lambda o, q: _least("reliability", o.reliability, q.min_reliability, ""),
    lambda o, q: _least("CUDA", o.cuda_max_good or 0.0, q.min_cuda or 0.0, ""),
    lambda o, q: None if o.direct_port_count >= 1 else "no direct port for SSH",
    lambda o, q: _least("rental time left", (o.duration_s or 0.0) / 3600, q.min_duration_s / 3600, " h"),
    lambda o, q: _price(o, q),
)


def mismatch(offer: Offer, query: OfferQuery) -> str | None:
    """Why this offer is not what the query asks for, in words for a person; None when it is."""
    return next((reason for check in CHECKS if (reason := check(offer, query))), None)


def _least(name: str, has: float, wanted: float, unit: str) -> str | None:
    return None if has >= wanted else f"{name} {has:.4g}{unit}, less than {wanted:.4g}{unit}"


def _price(offer: Offer, query: OfferQuery) -> str | None:
    limit = query.max_price_per_hour
    if limit is None or offer.price_per_hour <= limit:
        return None
    return f"{money.show(offer.price_per_hour)}/h, more than {money.show(limit)}/h"
