"""What earlier downloads say about this computer's line."""

from __future__ import annotations

from pathlib import Path

import pytest
from store import JOB, MANIFEST, NOW, add_job, opened

from daemon.store import downloads, events, schema

MEGABYTE = 1_000_000


def came_home(c, job: str, size: int, began: int, over: int) -> None:
    add_job(c, job)
    c.execute(
        schema.downloads.insert().values(
            job_id=job, path="model-Q8_0.gguf", manifest_sha256=MANIFEST, size=size, chunk_size=8 << 20, durable=b"",
            complete=1, updated_at=over,
        )
    )  # fmt: skip
    for at, here in ((began, 0), ((began + over) // 2, size // 2)):  # the daemon was started again in between
        events.add(c, "download.started", at, job=job, here=here)
    events.add(c, "job.moved", over, job=job, was="GGUF", to="DOWNLOADED")


def test_the_line_is_what_the_last_model_took(tmp_path: Path):
    """Bytes that were not here yet over the time from the last start to the end, in Mbit/s; unknown before."""
    database = opened(tmp_path)
    with database.write() as c:
        assert downloads.measured_line(c) is None
        came_home(c, JOB, 100 * MEGABYTE, NOW, NOW + 100_000)
        assert downloads.measured_line(c) == pytest.approx(8.0)
        came_home(c, "def456", 500 * MEGABYTE, NOW + 200_000, NOW + 240_000)
        assert downloads.measured_line(c) == pytest.approx(100.0)


def test_days_between_two_runs_are_no_slow_line(tmp_path: Path):
    """A lid closed for a weekend, or a model fetched again: the last run alone says what the line carries."""
    database, week = opened(tmp_path), 7 * 86_400_000
    with database.write() as c:
        came_home(c, JOB, 100 * MEGABYTE, NOW, NOW + 100_000)
        events.add(c, "download.started", NOW + week, job=JOB, here=0)
        events.add(c, "job.moved", NOW + week + 100_000, job=JOB, was="GGUF", to="DOWNLOADED")
        assert downloads.measured_line(c) == pytest.approx(8.0)
        events.add(c, "download.started", NOW + 2 * week, job=JOB, here=100 * MEGABYTE)
        events.add(c, "job.moved", NOW + 2 * week + 1000, job=JOB, was="GGUF", to="DOWNLOADED")
        assert downloads.measured_line(c) == pytest.approx(8.0)


def test_a_small_model_is_no_slow_line(tmp_path: Path):
    """Connecting took the most of it; the next job's sixteen gigabytes would be priced beyond every limit."""
    database = opened(tmp_path)
    with database.write() as c:
        came_home(c, JOB, 100 * MEGABYTE, NOW, NOW + 100_000)
        came_home(c, "def456", MEGABYTE, NOW + 200_000, NOW + 204_000)

        assert downloads.measured_line(c) == pytest.approx(8.0)


def test_the_last_chunk_of_a_model_is_no_slow_line(tmp_path: Path):
    """The daemon was started again when nearly all was here: what took the time was reading that back."""
    database = opened(tmp_path)
    with database.write() as c:
        came_home(c, JOB, 100 * MEGABYTE, NOW, NOW + 100_000)
        events.add(c, "download.started", NOW + 200_000, job=JOB, here=75 * MEGABYTE)
        events.add(c, "job.moved", NOW + 300_000, job=JOB, was="GGUF", to="DOWNLOADED")

        assert downloads.measured_line(c) == pytest.approx(8.0)


def test_a_rebuilt_model_says_nothing_about_the_line(tmp_path: Path):
    """Hardly a byte came over it while gigabytes were read back: that would pass for a line of a few kbit/s."""
    database = opened(tmp_path)
    with database.write() as c:
        came_home(c, JOB, 100 * MEGABYTE, NOW, NOW + 100_000)
        came_home(c, "def456", 500 * MEGABYTE, NOW + 200_000, NOW + 240_000)
        events.add(c, "rebuild.compared", NOW + 200_000, job="def456", quant="Q8_0", size=1, agreeing=1)

        assert downloads.measured_line(c) == pytest.approx(8.0)
