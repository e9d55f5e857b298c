"""How many GPUs: the table by which one chooses, on the whole bill."""

from __future__ import annotations

import pytest
from test_offers import OFFER, ROWS, SPEC

from daemon.domain.choices import choices
from daemon.domain.estimate import RANKS_USE, STEP_S, estimate
from daemon.domain.spec import Export, JobSpec, Limits, Machine, Training

FREE = SPEC.model_copy(update={"limits": Limits()})


def table(spec: JobSpec = FREE, rows=ROWS, line: float = 100.0, **offer):
    found = choices(
        spec,
        OFFER.__class__(**{**vars(OFFER), **offer}),
        lambda other, at: estimate(other, rows, at, line_mbps=line, parameters=7.6e9),
    )
    return {(choice.gpus, choice.placement): choice for choice in found}


def marked(found, mark: str):
    return next(key for key, choice in found.items() if mark in choice.marks)


def test_the_reference_job_is_best_on_one_gpu():
    """Its training is minutes of an hour: more GPUs would mostly wait, and are called fastest but nothing else."""
    found = table()

    assert list(found) == [(1, "single"), (2, "ddp"), (4, "ddp"), (8, "ddp")]
    assert found[1, "single"].marks == ("cheapest", "knee")
    assert found[8, "ddp"].marks == ("fastest",)
    assert found[8, "ddp"].expected.cost > 5 * found[1, "single"].expected.cost
    assert [choice.measured for choice in found.values()] == [True, True, False, False]


def test_a_long_training_is_worth_more_gpus():
    """Ten times the epochs: the knee moves up. A slow way home moves it down again, however long the training."""
    spec = FREE.model_copy(update={"sft": Training(data="sft.jsonl", epochs=30), "export": Export(gguf=("Q8_0",))})

    assert marked(table(spec, line=1000.0), "knee") == (4, "ddp")
    assert marked(table(spec, line=10.0), "knee") == (2, "ddp")
    assert marked(table(spec, line=2.0), "knee") == (1, "single")


def test_only_training_is_shared():
    """Everything else takes as long on eight; ranks share the training, with auto_map they take turns."""
    found = table(FREE.model_copy(update={"machine": Machine(gpu=("H100",), count=8), "placement": "ddp"}))
    one, eight, turns = (found[key].expected for key in ((1, "single"), (8, "ddp"), (8, "auto_map")))

    assert eight.training_s < one.training_s / 3
    assert eight.total_s - eight.training_s == pytest.approx(one.total_s - one.training_s)
    assert turns.training_s > one.training_s == found[8, "single"].expected.training_s
    assert turns.vram_gb < eight.vram_gb == one.vram_gb


def test_a_small_share_takes_its_time():
    """Eight GPUs divide the work, but no step gets shorter than the host needs to start it."""
    found = table()
    one, two, eight = (found[key].expected.stage_s for key in ((1, "single"), (2, "ddp"), (8, "ddp")))

    assert two["sft"] == pytest.approx(one["sft"] / (2 * RANKS_USE))
    assert eight["dpo"] == pytest.approx(one["dpo"] / (8 * RANKS_USE))
    assert eight["sft"] == 479 * STEP_S > one["sft"] / (8 * RANKS_USE)


def test_what_cannot_be_is_left_out():
    """A batch that cannot be shared has no ranks; a model that no GPU holds alone is spread over all, or nothing."""
    batch = FREE.model_copy(update={"batch_size": 6, "machine": Machine(count=4)})

    assert list(table(batch)) == [(1, "single"), (2, "ddp"), (4, "auto_map"), (4, "single")]
    assert list(table(batch, gpu_ram_mb=12_000)) == [(4, "auto_map")]
    assert list(table(gpu_ram_mb=12_000)) == []


def test_limits_are_named_in_place_of_a_recommendation():
    """What the job file's limits forbid is shown with the reason, and the best is sought among the rest."""
    found = table(SPEC)

    assert found[1, "single"].marks == ("cheapest", "fastest", "knee")
    assert found[2, "ddp"].marks[0] == "$4.20/h is over limits.price $3.00/h"


@pytest.mark.parametrize(
    ("count", "placement", "row"),
    [
        (1, "auto_map", (1, "single")),
        (2, "auto", (2, "ddp")),
        (2, "ddp", (2, "ddp")),
        (2, "auto_map", (2, "auto_map")),
        (2, "single", (2, "single")),
    ],
)
def test_the_row_of_the_job_file_is_marked(count: int, placement: str, row: tuple[int, str]):
    """On one GPU all placements are one; `auto` is what it comes to."""
    spec = FREE.model_copy(update={"machine": Machine(gpu=("H100",), count=count), "placement": placement})

    assert [key for key, choice in table(spec).items() if choice.asked] == [row]


def test_the_plain_way_takes_longer():
    """`speed: plain` is estimated as what was measured of it."""
    plain = table(FREE.model_copy(update={"speed": "plain"}))

    assert plain[1, "single"].expected.training_s > 3 * table()[1, "single"].expected.training_s
