"""How many GPUs, and how the model lies on them: what the whole job would take each way, to choose from.

The whole bill counts: boot, weights, conversion and the way home take as long on eight GPUs as on one, and cost eight
times as much there. So eight are never called best for a job that they would mostly wait through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from daemon.domain import money
from daemon.domain.estimate import RANKS_MEASURED, Estimate, over_limits
from daemon.domain.market import Offer
from daemon.domain.spec import JobSpec

COUNTS = (1, 2, 4, 8)  # GPUs of one machine, as they are offered
ASKED = {"auto": "ddp"}  # what a placement comes to where nothing speaks against it


@dataclass(frozen=True)
class Choice:
    """One row of the table. `marks`: "cheapest", "fastest", "knee", or the limits that it exceeds, and no other."""

    gpus: int
    placement: str
    expected: Estimate
    measured: bool  # False: the speed of so many GPUs is extrapolated
    asked: bool  # what the job file says
    marks: tuple[str, ...] = ()


def choices(spec: JobSpec, offer: Offer, estimated: Callable[[JobSpec, Offer], Estimate]) -> list[Choice]:
    """Every way that fits, by number of GPUs, at the price of one of `offer`'s GPUs.

    The knee is where time and money together are least, as their product: beyond it, a percent of time costs more
    than a percent of money.
    """
    found = []
    for gpus, placement in _ways(spec):
        machine = spec.machine.model_copy(update={"count": gpus})
        other = spec.model_copy(update={"machine": machine, "placement": placement})
        price = round(offer.price_per_hour / offer.num_gpus * gpus)
        scaled = replace(offer, num_gpus=gpus, price_per_hour=price)
        expected = estimated(other, scaled)
        if expected.vram_gb * 1000 > offer.gpu_ram_mb:
            continue
        over = over_limits(other, expected)
        if spec.limits.price is not None and price > spec.limits.price:
            over.insert(0, f"{money.show(price)}/h is over limits.price {money.show(spec.limits.price)}/h")
        asked = gpus == spec.machine.count and (gpus == 1 or placement == ASKED.get(spec.placement, spec.placement))
        found.append(Choice(gpus, placement, expected, gpus <= RANKS_MEASURED, asked, tuple(over)))
    best = _best([choice for choice in found if not choice.marks])
    return [replace(choice, marks=choice.marks or best.get((choice.gpus, choice.placement), ())) for choice in found]


def _ways(spec: JobSpec) -> Iterator[tuple[int, str]]:
    """One GPU, ranks on several that can share a step, and what else the job file could do with those it asks for."""
    for gpus in sorted({*COUNTS, spec.machine.count}):
        if gpus == 1:
            yield 1, "single"
            continue
        if spec.batch_size % gpus == 0:
            yield gpus, "ddp"
        if gpus == spec.machine.count:
            yield gpus, "auto_map"
            yield gpus, "single"


def _best(allowed: list[Choice]) -> dict[tuple[int, str], tuple[str, ...]]:
    """The marks of each of `allowed` that has any. Of equals the first, which has the fewest GPUs, is best."""
    if not allowed:
        return {}
    measures: dict[str, Callable[[Choice], float]] = {
        "cheapest": lambda choice: choice.expected.cost,
        "fastest": lambda choice: choice.expected.total_s,
        "knee": lambda choice: choice.expected.cost * choice.expected.total_s,
    }
    marks: dict[tuple[int, str], tuple[str, ...]] = {}
    for name, measure in measures.items():
        best = min(allowed, key=measure)
        key = (best.gpus, best.placement)
        marks[key] = (*marks.get(key, ()), name)
    return marks
