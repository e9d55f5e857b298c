"""Estimates and the choice of an offer: figures one can check by hand, and the reason of each rejection."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from daemon.domain.estimate import estimate, over_limits, steps_of
from daemon.domain.market import Offer
from daemon.domain.model_size import folder_parameters, gguf_bytes, named_parameters
from daemon.domain.offers import gpu_names, mismatch, query, rank, widened
from daemon.domain.spec import Export, JobSpec, Limits, Machine, Preference, Training

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000
ROWS = {"sft": 15_300, "dpo": 2_550}

SPEC = JobSpec(
    version=1,
    name="forex",
    model="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    sft=Training(data="sft.jsonl"),
    dpo=Preference(data="dpo.jsonl"),
    export=Export(gguf=("Q8_0", "Q4_K_M")),
    machine=Machine(gpu=("H100",)),
    limits=Limits(price=3_000_000, cost=16_000_000, time=12 * 3600),
)
OFFER = Offer(
    id=1, machine_id=11, host_id=1, gpu_name="H100 SXM", num_gpus=1, gpu_ram_mb=81_559, price_per_hour=2_100_000,
    inet_down_per_gb=2_000, inet_up_per_gb=2_000, disk_space_gb=500.0, inet_up_mbps=900.0, reliability=0.99,
    verified=True, rentable=True,
    direct_port_count=10, cuda_max_good=12.8, duration_s=30 * 86_400.0, end_date_ms=NOW_MS + 30 * DAY_MS,
    geolocation="SE",
)  # fmt: skip

expected = partial(estimate, SPEC, ROWS, line_mbps=100.0)


def ranking(*offers: Offer, spec: JobSpec = SPEC, **known):
    asked = query(spec, estimate(spec, ROWS, line_mbps=100.0), min_cuda=12.4)
    return rank(offers, spec, asked, partial(estimate, spec, ROWS, line_mbps=100.0), now_ms=NOW_MS, **known)


@pytest.mark.parametrize(
    ("rows", "epochs", "cap", "steps"),
    [
        (15_300, 1.0, None, 479),
        (15_300, 2.0, None, 958),
        (33, 10.0, None, 20),
        (100, 1.5, None, 6),
        (2_550, 1.0, None, 80),
        (15_300, 1.0, 330, 330),
        (33, 0.5, None, 1),
        (10, 1.0, 99, 1),
        (0, 2.0, None, 0),
    ],
)
def test_steps_follow_from_rows(rows, epochs, cap, steps):
    """Epochs times the steps of one, whose last is short; 15300 rows at 32 are 479 steps."""
    assert steps_of(Training(data="x", epochs=epochs, max_steps=cap), rows, 32) == steps


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7e9),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("meta/Llama-3.1-8B@v2", 8e9),
        ("owner/my-model", None),
        ("./models/nano", None),
    ],
)
def test_a_name_tells_the_size(model, parameters):
    """The last number with a B or M behind it; version numbers are none."""
    assert named_parameters(model) == parameters


def test_a_folder_tells_the_size(tmp_path: Path):
    """Two bytes per parameter of what lies there as safetensors."""
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 4000)

    assert folder_parameters(tmp_path) == 2000
    assert folder_parameters(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("parameters", "quant", "published"),
    [(7.242e9, "Q8_0", 7.695e9), (7.616e9, "Q8_0", 8.093e9), (7.616e9, "Q4_K_M", 4.677e9), (8.03e9, "Q5_K_M", 5.725e9)],
)
def test_file_sizes_agree_with_published_files(parameters, quant, published):
    """Within one percent of the sizes of known 7B and 8B files."""
    assert gguf_bytes(parameters, quant) == pytest.approx(published, rel=0.01)


def test_the_estimate_of_the_reference_job():
    """A 7B on one H100: about an hour, two dollars, 12 GB to bring home, and only the rows' length is guessed."""
    found = expected(OFFER)

    assert found.steps == {"sft": 479, "dpo": 80}
    assert 45 < found.minutes < 150
    assert 1_000_000 < found.cost < 4_000_000
    assert 0 < found.reserve < found.cost
    assert found.model_bytes == pytest.approx(11.9e9, rel=0.05)
    assert found.disk_gb > 3 * 14 + 12
    assert found.assumed == ("rows fill 50% of max_length on average, which is taken as 1024 tokens",)


def test_a_dearer_price_or_slower_line_costs_more():
    """Cost follows the offer's price, time the line."""
    base = expected(OFFER)

    assert expected(replace(OFFER, price_per_hour=4_200_000)).cost > 1.9 * base.cost
    assert estimate(SPEC, ROWS, OFFER, line_mbps=10.0).total_s > base.total_s + 7000
    assert expected(replace(OFFER, inet_up_per_gb=1_000_000)).cost - base.cost == pytest.approx(11.9e6, rel=0.05)


def test_what_is_not_known_is_said():
    """An unknown model, line, card and price are assumptions by name."""
    spec = SPEC.model_copy(update={"model": "owner/thing", "machine": Machine(), "limits": Limits()})

    assert len(estimate(spec, ROWS).assumed) == 5


def test_limits_that_cannot_hold_are_found_before_renting():
    """The estimate is held against cost and time."""
    spec = SPEC.model_copy(update={"limits": Limits(cost=1_000_000, time=600)})

    problems = over_limits(spec, estimate(spec, ROWS, OFFER, line_mbps=100.0))

    assert [p.split(" is over ")[1] for p in problems] == ["limits.cost $1.00", "limits.time 10m"]


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["H100"], ("H100 SXM", "H100 PCIE", "H100 NVL")),
        (["RTX4090", "L40S"], ("RTX 4090", "L40S")),
        (["4090"], ("RTX 4090",)),
        (["A100_PCIE"], ("A100 PCIE",)),
        (["L40"], ("L40",)),
        (["h100", "H100_SXM"], ("H100 SXM", "H100 PCIE", "H100 NVL")),
        (["Future_GPU"], ("Future GPU",)),
        ([], ()),
    ],
)
def test_gpu_names_are_spelled_as_the_market_does(written, names):
    """A family means its cards, 'L40' is not 'L40S', and a new name passes through."""
    assert gpu_names(written) == names


def test_the_query_asks_for_what_the_job_needs():
    """Disk and memory from the estimate with the market's margin, twice the time and a day of rental left."""
    asked = query(SPEC, expected(), min_cuda=12.4)

    assert asked.disk_gb == expected().disk_gb
    assert asked.min_gpu_ram_mb == round(expected().vram_gb * 930)
    assert asked.min_duration_s == 2 * expected().total_s + 86_400
    assert (asked.max_price_per_hour, asked.verified, asked.num_gpus) == (3_000_000, True, 1)
    assert query(SPEC.model_copy(update={"machine": Machine(vram=80, disk=200)}), expected()).num_gpus == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rentable": False}, "rented by somebody else"),
        ({"gpu_name": "H200"}, "GPU is H200"),
        ({"num_gpus": 2}, "2 GPUs, not 1"),
        ({"gpu_ram_mb": 16_000}, "GPU memory 16 GB, less than"),
        ({"disk_space_gb": 30.0}, "free disk 30 GB, less than"),
        ({"verified": False}, "machine is not verified"),
        ({"reliability": 0.5}, "reliability 0.5, less than 0.9"),
        ({"cuda_max_good": 12.2}, "CUDA 12.2, less than 12.4"),
        ({"cuda_max_good": None}, "CUDA 0, less than 12.4"),
        ({"direct_port_count": 0}, "no direct port for SSH"),
        ({"duration_s": 3600.0}, "rental ends in 1h, needed are 25h"),
        ({"end_date_ms": NOW_MS + DAY_MS}, "rental ends in 24h, needed are"),
        ({"price_per_hour": 3_010_000}, "$3.01/h, more than $3.00/h"),
        ({"machine_id": 66}, "machine 66 failed before"),
        ({"inet_up_per_gb": 2_000_000}, "expected cost $"),
    ],
)
def test_each_rejection_has_its_reason(change, reason):
    """One flaw in an otherwise good offer, told in words."""
    found = ranking(replace(OFFER, **change), bad_machines={66}, credit=100_000_000)

    assert found.chosen == ()
    assert found.rejected[0][1].startswith(reason)


def test_a_good_offer_passes():
    """The control of the table above: unchanged, it is chosen."""
    assert ranking(OFFER, bad_machines={66}, credit=100_000_000).chosen == (OFFER,)


def test_credit_must_cover_cost_and_reserve():
    """A credit that pays the estimate exactly leaves nothing to bring the model home with."""
    exact = expected(OFFER).cost

    assert ranking(OFFER, credit=exact).rejected[0][1].startswith("credit $")
    assert ranking(OFFER, credit=exact + expected(OFFER).reserve).chosen == (OFFER,)


def test_the_cheapest_whole_job_comes_first():
    """A slower card at a lower hourly price may cost more in the end; reliability decides between equals."""
    slow = replace(OFFER, id=2, gpu_name="A100 SXM4", price_per_hour=1_700_000)
    steadier = replace(OFFER, id=3, machine_id=12, reliability=0.999)
    spec = SPEC.model_copy(update={"machine": Machine(gpu=("H100", "A100"))})

    found = ranking(slow, OFFER, steadier, spec=spec)

    assert [offer.id for offer in found.chosen] == [3, 1, 2]


def test_a_widened_search_takes_what_the_strict_one_refuses():
    """It keeps GPU, count and disk, so that the reasons shown are about price, time and quality."""
    asked = query(SPEC, expected(), min_cuda=12.4)
    poor = replace(
        OFFER, price_per_hour=9_000_000, verified=False, reliability=0.1, cuda_max_good=11.0, duration_s=60.0
    )

    assert mismatch(poor, widened(asked)) is None
    assert mismatch(poor, asked) is not None
    assert mismatch(replace(OFFER, num_gpus=4), widened(asked)) == "4 GPUs, not 1"
