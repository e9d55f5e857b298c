"""Download or rebuild: what each takes of rent, and when which is chosen."""

from __future__ import annotations

import pytest
from test_offers import OFFER, ROWS, SPEC

from daemon.domain import deliver, money
from daemon.domain.deliver import WayHome
from daemon.domain.estimate import estimate
from daemon.domain.spec import Export, JobSpec, Limits

SEVEN = 7.6e9  # parameters
EIGHT_CARDS = Limits(price=money.micros("16.00"))
FAST = WayHome("download", 200.0, 1, 1)


def spec_of(*gguf: str, limits: Limits = EIGHT_CARDS) -> JobSpec:
    return SPEC.model_copy(update={"export": Export(gguf=gguf), "limits": limits})


def ways_of(spec: JobSpec, line: float) -> tuple[WayHome, WayHome]:
    return deliver.ways(spec, estimate(spec, ROWS, line_mbps=line, parameters=SEVEN), line)


@pytest.mark.parametrize(
    ("gguf", "line", "download", "rebuild"),
    [
        (("Q8_0",), 50, (23.7, "$6.31"), (3.4, "$0.90")),
        (("Q8_0",), 100, (12.7, "$3.38"), (3.2, "$0.84")),
        (("Q8_0",), 1000, (2.8, "$0.74"), (3.0, "$0.79")),
        (("Q8_0", "Q4_K_M"), 100, (19.3, "$5.15"), (8.3, "$2.22")),
        (("Q4_K_M",), 100, (7.8, "$2.09"), (7.6, "$2.04")),
    ],
)
def test_a_7b_on_eight_cards(
    gguf: tuple[str, ...], line: float, download: tuple[float, str], rebuild: tuple[float, str]
) -> None:
    """Billed minutes and dollars from the last GGUF to the proven model, on a line of so many Mbit/s."""
    found = [(round(way.seconds / 60, 1), money.show(way.cost)) for way in ways_of(spec_of(*gguf), line)]

    assert found == [download, rebuild]


def test_bytes_are_paid_for_too() -> None:
    """An offer's price of bytes is in the cost of what is fetched, and of that alone."""
    spec = spec_of("Q8_0")
    expected = estimate(spec, ROWS, line_mbps=100, parameters=SEVEN)
    free, dear = (OFFER.__class__(**{**vars(OFFER), "inet_up_per_gb": price}) for price in (0, 20_000))

    more = [b.cost - a.cost for a, b in zip(*(deliver.ways(spec, expected, 100, o) for o in (free, dear)), strict=True)]

    assert more == [pytest.approx(expected.model_bytes / 1e9 * 20_000, abs=1), 0]


@pytest.mark.parametrize(
    ("wanted", "problem", "rebuild_s", "way", "why"),
    [
        ("download", "", 1.0, "download", "the job file"),
        ("rebuild", "", 900.0, "rebuild", "the job file"),
        ("rebuild", "no torch", 1.0, "download", "no torch"),
        ("auto", "no torch", 1.0, "download", "no torch"),
        ("auto", "", 140.0, "rebuild", "at 50 Mbit/s: a download takes 3m ($0.0000) of rent"),
        ("auto", "", 141.0, "download", "at 50 Mbit/s: a download takes 3m"),
    ],
)
def test_the_choice(wanted: str, problem: str, rebuild_s: float, way: str, why: str) -> None:
    """The job file's word where it can be kept; auto rebuilds for a minute of rent or more, and gives both figures."""
    found = deliver.choose(wanted, problem, FAST, WayHome("rebuild", rebuild_s, 1, 1), "at 50 Mbit/s")

    assert found.way == way and why in found.why


def test_a_machine_waits_no_longer_than_its_download_would_take() -> None:
    """8 GB at 100 Mbit/s: eleven minutes. A small file is given five: on a busy computer imports take minutes."""
    assert deliver.patience_s(8e9, 100) == 640
    assert deliver.patience_s(1e6, 100) == deliver.LEAST_PATIENCE_S


def test_the_slower_of_limit_and_measurement_counts() -> None:
    assert deliver.line_of(spec_of("Q8_0", limits=Limits(line=80)), 300.0) == 80
    assert deliver.line_of(spec_of("Q8_0"), 300.0) == 300
    assert deliver.line_of(spec_of("Q8_0"), None) == 50


def test_room_that_the_rebuilding_takes() -> None:
    """The finished files are those that would be downloaded; weights from the hub and a 16-bit file come on top."""
    assert deliver.needed_bytes(spec_of("Q8_0"), SEVEN, fetches_base=False) == 0
    assert deliver.needed_bytes(spec_of("Q8_0"), SEVEN, fetches_base=True) == 15_200_000_000
    assert deliver.needed_bytes(spec_of("Q8_0", "Q4_K_M"), SEVEN, fetches_base=True) == 30_400_000_000
