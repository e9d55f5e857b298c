"""Which offers fit a job, which is the best, and why each of the others is not. Pure.

The market's own filters narrow the search; here they are applied again, because it does not always apply them, and what
it cannot filter by is added: the whole cost, the credit, what we know of a machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from daemon.domain import money, units
from daemon.domain.estimate import Estimate, over_limits
from daemon.domain.market import Offer, OfferQuery
from daemon.domain.spec import JobSpec

GB = 1000  # MB
USABLE = 0.93  # a "24 GB" card shows 24,564 MB or less
MARGIN_S = 24 * 3600.0  # rental time left beyond twice the estimate

# Names as the market spells them; a family such as "H100" or "A100" means each of its cards.
GPUS = (
    "B200", "H200", "H200 NVL", "H100 SXM", "H100 PCIE", "H100 NVL", "A100 SXM4", "A100 PCIE", "L40S", "L40",
    "RTX 6000Ada", "RTX A6000", "RTX 5090", "RTX 4090", "RTX 4090D", "RTX 3090", "RTX 3090 Ti",
)  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """`chosen`: what may be rented, best first. `rejected`: each other offer and the reason."""

    chosen: tuple[Offer, ...]
    rejected: tuple[tuple[Offer, str], ...]


def query(spec: JobSpec, expected: Estimate, *, min_cuda: float | None = None) -> OfferQuery:
    """What to ask the market for. `expected` gives disk, GPU memory and rental time, `min_cuda` is the image's."""
    machine = spec.machine
    return OfferQuery(
        gpu_names=gpu_names(machine.gpu),
        num_gpus=machine.count,
        min_gpu_ram_mb=round(expected.vram_gb * GB * USABLE),
        disk_gb=expected.disk_gb,
        max_price_per_hour=spec.limits.price,
        min_duration_s=2 * expected.total_s + MARGIN_S,
        verified=machine.verified,
        min_cuda=min_cuda,
    )


def widened(asked: OfferQuery) -> OfferQuery:
    """The same search without what may be loosened, to show what is missed by how much."""
    return replace(
        asked, min_gpu_ram_mb=0, max_price_per_hour=None, min_duration_s=0.0, verified=False, min_cuda=None,
        min_reliability=0.0,
    )  # fmt: skip


def gpu_names(wanted: Sequence[str]) -> tuple[str, ...]:
    """Names as people write them ('RTX4090', 'h100', 'A100_PCIE') in the market's spelling; an unknown one stays."""
    found: list[str] = []
    for name in wanted:
        known = [gpu for gpu in GPUS if _squeezed(name) in _family(gpu)]
        found += known or [name.replace("_", " ").strip()]
    return tuple(dict.fromkeys(found))


def rank(
    offers: Collection[Offer],
    spec: JobSpec,
    asked: OfferQuery,
    estimate: Callable[[Offer], Estimate],
    *,
    bad_machines: Collection[int] = (),
    credit: int | None = None,
    now_ms: int,
) -> Ranking:
    """The cheapest way through the whole job first: a dearer card that is done sooner may win.

    `bad_machines` failed this install before; `credit` is the account's, None where nothing has to be paid.
    """
    chosen: list[tuple[int, float, int, Offer]] = []
    rejected: list[tuple[Offer, str]] = []
    for offer in offers:
        expected = estimate(offer)
        reason = mismatch(offer, asked) or _unsuitable(offer, spec, expected, bad_machines, credit, now_ms)
        if reason:
            rejected.append((offer, reason))
        else:
            chosen.append((expected.cost, -offer.reliability, offer.id, offer))
    return Ranking(
        chosen=tuple(offer for *_, offer in sorted(chosen, key=lambda row: row[:3])),
        rejected=tuple(sorted(rejected, key=lambda pair: (pair[0].price_per_hour, pair[0].id))),
    )


def mismatch(offer: Offer, asked: OfferQuery) -> str | None:
    """Why this offer is not what the query asks for, in words for a person; None when it is."""
    return next((reason for check in CHECKS if (reason := check(offer, asked))), None)


# One row for each filter of the query.
CHECKS: tuple[Callable[[Offer, OfferQuery], str | None], ...] = (
    lambda o, q: None if o.rentable else "rented by somebody else",
    lambda o, q: None if not q.gpu_names or o.gpu_name in q.gpu_names else f"GPU is {o.gpu_name}",
    lambda o, q: None if o.num_gpus == q.num_gpus else f"{o.num_gpus} GPUs, not {q.num_gpus}",
    lambda o, q: _least("GPU memory", o.gpu_ram_mb / GB, q.min_gpu_ram_mb / GB, " GB"),
    lambda o, q: _least("free disk", o.disk_space_gb, q.disk_gb, " GB"),
    lambda o, q: None if o.verified or not q.verified else "machine is not verified",
    lambda o, q: _least("reliability", o.reliability, q.min_reliability),
    lambda o, q: _least("CUDA", o.cuda_max_good or 0.0, q.min_cuda or 0.0),
    lambda o, q: None if o.direct_port_count >= 1 else "no direct port for SSH",
    lambda o, q: _long_enough(o.duration_s or 0.0, q.min_duration_s),
    lambda o, q: _cheap_enough(o.price_per_hour, q.max_price_per_hour),
)


def _unsuitable(
    offer: Offer, spec: JobSpec, expected: Estimate, bad_machines: Collection[int], credit: int | None, now_ms: int
) -> str | None:
    """What only the whole job shows: it would outlive the contract, the limits or the credit."""
    if offer.machine_id in bad_machines:
        return f"machine {offer.machine_id} failed before"
    if offer.end_date_ms is not None:
        reason = _long_enough((offer.end_date_ms - now_ms) / 1000, 2 * expected.total_s + MARGIN_S)
        if reason:
            return reason
    if exceeded := over_limits(spec, expected):
        return exceeded[0]
    if credit is not None and credit < (needed := expected.cost + expected.reserve):
        return f"credit {money.show(credit)} is less than the {money.show(needed)} that cost and reserve may take"
    return None


def _least(name: str, has: float, wanted: float, unit: str = "") -> str | None:
    return None if has >= wanted else f"{name} {has:.4g}{unit}, less than {wanted:.4g}{unit}"


def _long_enough(left_s: float, needed_s: float) -> str | None:
    if left_s >= needed_s:
        return None
    return f"rental ends in {units.show_duration(max(0.0, left_s))}, needed are {units.show_duration(needed_s)}"


def _cheap_enough(price: int, limit: int | None) -> str | None:
    return None if limit is None or price <= limit else f"{money.show(price)}/h, more than {money.show(limit)}/h"


def _family(gpu: str) -> set[str]:
    """Every shorter name that stands for this card: its first words, written together."""
    words = gpu.split()
    return {_squeezed("".join(words[:n])) for n in range(1, len(words) + 1)} - {""}


def _squeezed(name: str) -> str:
    return "".join(c for c in name.upper() if c.isalnum()).removeprefix("RTX")
