"""How the GGUF files come home: downloaded whole, or rebuilt here while the machine makes them. Pure.

A rebuilt file is only a guess at the machine's: the download keeps the chunks of it that the manifest promises and
fetches the others, so the choice is one of time and money and never of what counts as the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.domain import model_size, money, units
from daemon.domain.estimate import CONVERT_S, LINE_MBPS, VERIFY_BYTES_PER_S, VERIFY_S, Estimate
from daemon.domain.market import Offer
from daemon.domain.spec import JobSpec, Quant

DOWNLOAD, REBUILD = "download", "rebuild"
HOME_BYTES_PER_S = 0.1e9  # of the base model's files, converted here at a low priority
HOME_MEMORY = 3_000_000_000  # bytes, beside a byte for each parameter: the tensors under way, in float32
LEAST_GAIN_S = 60.0  # of rent; for less, nothing is begun here
LEAST_PATIENCE_S = 300.0  # a finished machine waits for a rebuild as long as its download would take, but at least this


@dataclass(frozen=True)
class WayHome:
    """Billed seconds from the end of the GGUF stage to the proven model, what they cost, and the bytes that come."""

    way: str
    seconds: float
    cost: int  # micro-dollars: the machine's time, and what the host takes for bytes
    bytes: int


@dataclass(frozen=True)
class Delivery:
    way: str
    why: str


def is_exact(quant: Quant) -> bool:
    """Whether two computers make the same bytes of it. What llama.cpp's compiled code searches for, they may not."""
    return not quant.endswith(("_K", "_K_M"))


def line_of(spec: JobSpec, measured: float | None) -> float:
    """Mbit/s that the model comes home with."""
    return min(filter(None, (spec.limits.line, measured)), default=LINE_MBPS)


def ways(spec: JobSpec, expected: Estimate, line_mbps: float, offer: Offer | None = None) -> tuple[WayHome, WayHome]:
    """Download and rebuild. K-quants are reckoned as downloaded both times; the adapter is mirrored in training."""
    per_byte_s = 8 / (line_mbps * 1e6)
    price, per_gb = (offer.price_per_hour, offer.inet_up_per_gb) if offer else (spec.limits.price or 0, 0)
    proof_s = VERIFY_S + expected.model_bytes / VERIFY_BYTES_PER_S

    def way(name: str, size: float, waited_s: float) -> WayHome:
        seconds = waited_s + size * per_byte_s + proof_s
        cost = money.accrued(price, round(seconds * 1000)) + round(size / 1e9 * per_gb)
        return WayHome(name, seconds, cost, round(size))

    adapter = model_size.adapter_bytes(expected.parameters, spec.lora.r)
    exact = sum(model_size.gguf_bytes(expected.parameters, quant) for quant in spec.export.gguf if is_exact(quant))
    at_home_s = adapter * per_byte_s + rebuild_s(spec, expected.parameters)
    waited_s = max(0.0, at_home_s - expected.stage_s["gguf"])
    return way(DOWNLOAD, expected.model_bytes, 0.0), way(REBUILD, expected.model_bytes - exact - adapter, waited_s)


def rebuild_s(spec: JobSpec, parameters: float) -> float:
    """Until the files that are the same everywhere are made here."""
    passes = sum(is_exact(quant) for quant in spec.export.gguf)
    return CONVERT_S + passes * parameters * model_size.WEIGHT_BYTES / HOME_BYTES_PER_S


def needed_bytes(spec: JobSpec, parameters: float, *, fetches_base: bool) -> int:
    """Of disk here, beside the finished files: weights from the hub, and the 16-bit file on the way to K-quants."""
    copies = fetches_base + any(not is_exact(quant) for quant in spec.export.gguf)
    return round(copies * parameters * model_size.WEIGHT_BYTES)


def memory_needed(parameters: float) -> int:
    """Bytes that the rebuilding takes here."""
    return HOME_MEMORY + round(parameters)


def choose(wanted: str, problem: str, download: WayHome, rebuild: WayHome, line: str) -> Delivery:
    """What the job file's `deliver` comes to. `problem`: why nothing can be rebuilt here; '' when it can."""
    if wanted == DOWNLOAD:
        return Delivery(DOWNLOAD, "the job file says so")
    if problem:
        return Delivery(DOWNLOAD, problem)
    if wanted == REBUILD:
        return Delivery(REBUILD, "the job file says so")
    told = f"{line}: a download takes {_said(download)} of rent, a rebuild {_said(rebuild)}"
    return Delivery(REBUILD if download.seconds - rebuild.seconds >= LEAST_GAIN_S else DOWNLOAD, told)


def patience_s(missing_bytes: float, line_mbps: float) -> float:
    """How long a finished machine may wait for the rebuild of files of so many bytes.

    As long as their download takes: then waiting in vain costs no more than twice what the better way had cost.
    """
    return max(LEAST_PATIENCE_S, missing_bytes * 8 / (line_mbps * 1e6))


def _said(way: WayHome) -> str:
    return f"{units.show_duration(way.seconds)} ({money.show(way.cost)})"
