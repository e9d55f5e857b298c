"""How far rows get: the reference job's arithmetic, and when there is nothing to say."""

from __future__ import annotations

import pytest

from daemon.domain.coverage import coverage


@pytest.mark.parametrize(
    ("rows", "steps", "trained", "warning"),
    [
        (15_300, 330, 10_560, "330 SFT steps of 32 rows reach 10,560 of 15,300: 4,740 rows are never trained"),
        (15_300, 479, 15_300, None),  # the last step is not full
        (15_300, 958, 15_300, None),  # two epochs
        (5, 1, 5, None),
    ],
)
def test_steps_times_batch_is_what_is_reached(rows, steps, trained, warning):
    """Before the box has counted, every row that was read is taken as usable."""
    (counted,) = coverage({"sft": rows, "eval": 400}, {"steps": {"SFT": steps}}, 32)

    assert (counted.read, counted.kept, counted.trained, counted.warning) == (rows, None, trained, warning)


def test_what_the_box_dropped_is_told():
    """A row whose answer lies beyond max_length is trained in no epoch."""
    prepared = {"kept": {"DPO": 95}, "truncated": {"DPO": 2}, "steps": {"DPO": 3}}

    (counted,) = coverage({"dpo": 100}, prepared, 32)

    assert (counted.kept, counted.truncated, counted.trained) == (95, 2, 95)
    assert counted.warning == "5 of 100 DPO rows have no answer left within max_length"
