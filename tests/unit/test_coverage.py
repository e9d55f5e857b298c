"""How far rows get: the reference job's arithmetic, and when there is nothing to say."""

from __future__ import annotations

import json

import pytest

from daemon.domain.coverage import coverage
from daemon.store.job_rows import JobRows
from daemon.store.views import coverage_views


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


def test_a_stored_job_is_counted_once_the_box_has_read_it():
    """Nothing before; then the box's numbers, whatever else was sent beside the rows."""
    sent = {"sft": {"sha256": "a", "rows": 40, "original_sha256": "b"}, "start_from": {"r": 8}}
    prepared = {"kept": {"SFT": 40}, "truncated": {"SFT": 1}, "steps": {"SFT": 1}}

    def views(prepared_json):
        job = {"data_json": json.dumps(sent), "prepared_json": prepared_json}
        return coverage_views(JobRows(job, {"batch_size": 32}))

    (counted,) = views(json.dumps(prepared))

    assert views(None) == []
    assert (counted["stage"], counted["trained"], counted["truncated"]) == ("SFT", 32, 1)
