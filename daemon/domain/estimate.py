"""What a job will take, before anything is rented: steps, time, money, bytes. Pure, and open about what it assumes.

The figures are for choosing and for refusing what cannot fit its limits, not for billing. Where nothing is known they
lean to the dear side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from daemon.domain import model_size, money, units
from daemon.domain.market import Offer
from daemon.domain.spec import JobSpec, Training

PARAMETERS = 8e9  # of a model whose size is not known
MAX_LENGTH = 1024  # tokens, where the machine is to derive it from the rows
ROW_TOKENS = 0.5  # share of max_length that an average row fills
FLOP_PER_TOKEN = 4.0  # per parameter: forward, and backward without the frozen weights' gradients
PAIR_COST = 2.5  # a preference pair beside one row: two sequences, and a frozen reference pass over both
# Shares of the card's dense bf16 rate that training reaches. Measured on H100s and H200s with a 7B
# (docs/performance.md): 0.47 to 0.60, and 0.08 to 0.12 the plain way, in which a model that lies on several GPUs is
# trained.
USE = 0.4
PLAIN_USE = 0.1
RANKS_USE = 0.93  # of each GPU's time, when all of them train and exchange gradients (ddp); 0.92 in DPO
RANKS_MEASURED = 2  # up to so many GPUs; for more the same is assumed
STEP_S = (
    0.27  # no step is shorter: so long did one take with an eighth of 32 rows. The host needs that to start its work
)

# Dense bf16 TFLOP/s by the beginning of the market's GPU name, longest first. Source: the makers' data sheets.
TFLOPS = {
    "H100 PCIE": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0,
    "L40": 181.0, "RTX 6000Ada": 364.0, "RTX A6000": 155.0, "RTX 5090": 210.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip
UNKNOWN_TFLOPS = 70.0

BOOT_S = 480.0  # image pull, sshd, payload, environment
PREPARE_S = 60.0
HUB_MBPS = 500.0  # what a model hub delivers to a data centre
CONVERT_S = 20.0  # plus what follows, for each pass over the weights; 78 s in all were measured for a 7B's Q8_0
CONVERT_BYTES_PER_S = 0.2e9
VERIFY_S = 60.0
VERIFY_BYTES_PER_S = 0.2e9  # sha256 from disk, the number scan, and the behaviour check
LINE_MBPS = 50.0  # of a home connection that nothing is known about
RESERVE = 1.5  # of the time that rescue needs

BOX_BASE_GB = 20  # of disk: environment, payload, converter, logs
GPU_BASE_GB = 4  # of GPU memory: activations with checkpointing, and the CUDA context


@dataclass(frozen=True)
class Estimate:
    """`steps` by stage, times in seconds, money in micro-dollars. `cost` is everything, bandwidth included.

    `reserve` must still be there when training ends, to bring the model home; `model_bytes` is what comes home;
    `disk_gb` and `vram_gb` (per GPU) are what the box needs; `work_bytes` of that disk are what the job itself writes.
    `assumed` names what was not known.
    """

    steps: Mapping[str, int]
    stage_s: Mapping[str, float]
    download_s: float
    total_s: float
    cost: int
    reserve: int
    rescue_s: float  # download and verification
    model_bytes: int
    disk_gb: int
    work_bytes: int
    vram_gb: int
    parameters: float
    assumed: tuple[str, ...]

    def reserve_at(self, price: int, up_per_gb: int) -> int:
        """What bringing the model home takes of a machine of this price an hour, whose GB upwards costs so much."""
        return _reserve(self.rescue_s, self.model_bytes, price, up_per_gb)

    @property
    def minutes(self) -> float:
        return self.total_s / 60

    @property
    def training_s(self) -> float:
        return sum(seconds for stage, seconds in self.stage_s.items() if stage != "gguf")


def estimate(
    spec: JobSpec,
    rows: Mapping[str, int],
    offer: Offer | None = None,
    *,
    line_mbps: float | None = None,
    parameters: float | None = None,
) -> Estimate:
    """What `spec` takes with so many rows by kind (sft, dpo), on `offer` or on the first GPU it names.

    `line_mbps` is this workstation's download speed, `parameters` the base model's size where it is known better than
    from its name.
    """
    taken = "" if spec.max_length else f", which is taken as {MAX_LENGTH} tokens"
    assumed = [f"rows fill {ROW_TOKENS:.0%} of max_length on average{taken}"]
    size = parameters or model_size.named_parameters(spec.model)
    if size is None:
        size = PARAMETERS
        assumed.append(f"the model has {PARAMETERS / 1e9:g}B parameters")
    line = min(filter(None, (spec.limits.line, line_mbps)), default=None)
    if line is None:
        line = LINE_MBPS
        assumed.append(f"your line brings {LINE_MBPS:g} Mbit/s")
    gpu = offer.gpu_name if offer else " ".join(spec.machine.gpu[:1])
    if _tflops(gpu) is None:
        assumed.append(f"the GPU reaches {UNKNOWN_TFLOPS:g} TFLOP/s")
    if offer is None and spec.limits.price is None:
        assumed.append("no price: cost is that of bandwidth only")

    model_bytes = sum(model_size.gguf_bytes(size, quant) for quant in spec.export.gguf)
    adapter = model_size.adapter_bytes(size, spec.lora.r)
    weights = size * model_size.WEIGHT_BYTES
    steps = {kind: steps_of(stage, rows.get(kind, 0), spec.batch_size) for kind, stage in _stages(spec)}
    stage_s = {kind: _training_s(spec, kind, count, size, gpu) for kind, count in steps.items()}
    stage_s["gguf"] = CONVERT_S + _passes(spec) * weights / CONVERT_BYTES_PER_S
    up_mbps = min(line, offer.inet_up_mbps) if offer and offer.inet_up_mbps else line
    home_bytes = model_bytes + adapter
    download_s = home_bytes * 8 / (up_mbps * 1e6)
    rescue_s = download_s + VERIFY_S + model_bytes / VERIFY_BYTES_PER_S
    fetch_s = weights * 8 / (HUB_MBPS * 1e6)
    total_s = BOOT_S + PREPARE_S + fetch_s + sum(stage_s.values()) + rescue_s

    price = offer.price_per_hour if offer else (spec.limits.price or 0)
    up_price, down_price = (offer.inet_up_per_gb, offer.inet_down_per_gb) if offer else (0, 0)
    home_cost = round(home_bytes / 1e9 * up_price)
    work = _work_bytes(spec, weights, model_bytes, adapter)
    return Estimate(
        steps=steps,
        stage_s=stage_s,
        download_s=download_s,
        total_s=total_s,
        cost=money.accrued(price, round(total_s * 1000)) + home_cost + round(weights / 1e9 * down_price),
        reserve=_reserve(rescue_s, home_bytes, price, up_price),
        rescue_s=rescue_s,
        model_bytes=round(home_bytes),
        vram_gb=spec.machine.vram or _vram_gb(spec, weights),
        disk_gb=spec.machine.disk or BOX_BASE_GB + math.ceil(work / 1e9),
        work_bytes=round(work),
        parameters=size,
        assumed=tuple(assumed),
    )


def _reserve(rescue_s: float, home_bytes: float, price: int, up_per_gb: int) -> int:
    return money.accrued(price, round(RESERVE * rescue_s * 1000)) + round(home_bytes / 1e9 * up_per_gb)


def steps_of(training: Training, rows: int, batch_size: int) -> int:
    """Optimizer steps: epochs times those of one, rounded up, capped by max_steps. As the box counts.

    The last step of an epoch may be short: it is not filled from the next epoch, which begins with one of its own.
    """
    derived = math.ceil(training.epochs * math.ceil(rows / batch_size))
    return min(derived, training.max_steps or derived)


def over_limits(spec: JobSpec, expected: Estimate) -> list[str]:
    """The limits that the estimate exceeds, in words; renting would only waste money."""
    limits = spec.limits
    found = []
    if limits.cost is not None and expected.cost > limits.cost:
        found.append(f"expected cost {money.show(expected.cost)} is over limits.cost {money.show(limits.cost)}")
    if limits.time is not None and expected.total_s > limits.time:
        needed, allowed = units.show_duration(expected.total_s), units.show_duration(limits.time)
        found.append(f"expected time {needed} is over limits.time {allowed}")
    return found


def _stages(spec: JobSpec) -> list[tuple[str, Training]]:
    return [(kind, stage) for kind, stage in (("sft", spec.sft), ("dpo", spec.dpo)) if stage is not None]


def _training_s(spec: JobSpec, kind: str, steps: int, parameters: float, gpu: str) -> float:
    """With auto_map several GPUs hold the model together and take turns, so they are no faster than one alone."""
    tokens = spec.batch_size * (spec.max_length or MAX_LENGTH) * ROW_TOKENS * (PAIR_COST if kind == "dpo" else 1)
    is_spread = spec.machine.count > 1 and spec.placement == "auto_map"
    use = PLAIN_USE if is_spread or spec.speed == "plain" else USE
    at_work = max(1.0, spec.machine.count * RANKS_USE) if spec.placement in ("ddp", "auto") else 1.0
    rate = (_tflops(gpu) or UNKNOWN_TFLOPS) * 1e12 * use * at_work
    return steps * max(STEP_S, tokens * FLOP_PER_TOKEN * parameters / rate)


def _passes(spec: JobSpec) -> int:
    """Over the weights: one for each file, and one for the 16-bit file that block formats are quantised from."""
    return len(spec.export.gguf) + _has_block_formats(spec)


def _has_block_formats(spec: JobSpec) -> bool:
    return any(quant.endswith(("_K", "_K_M")) for quant in spec.export.gguf)


def _tflops(gpu: str) -> float | None:
    return next((rate for name, rate in TFLOPS.items() if _squeezed(gpu).startswith(_squeezed(name))), None)


def _squeezed(gpu: str) -> str:
    return "".join(c for c in gpu.upper() if c.isalnum())


def _vram_gb(spec: JobSpec, weights: float) -> int:
    """Per GPU. The model is spread over all of them, unless each that works is to hold it alone."""
    holders = 1 if spec.placement in ("single", "ddp") else spec.machine.count
    return math.ceil(1.15 * weights / 1e9 / holders) + GPU_BASE_GB


def _work_bytes(spec: JobSpec, weights: float, model_bytes: float, adapter: float) -> float:
    """Base and merged model, a 16-bit GGUF where one is quantised from it, the outputs, adapters with optimizer.

    Of the last the `keep` of each stage and one more: the one that comes home meanwhile. While yet another one is saved
    there is no merged model, which is larger.
    """
    copies = 2 + _has_block_formats(spec)
    checkpoints = 3 * adapter * (spec.checkpoint.keep + 1) * len(_stages(spec))
    return 1.1 * (copies * weights + model_bytes + checkpoints)
