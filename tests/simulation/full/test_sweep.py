"""The sweep over every boundary of the happy path; here a part of it that differs by boundary, the whole by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .sweep import Case, happy_path, objections, singles

HAPPY = happy_path()
STEP = 97  # a prime: each kind of boundary comes up with each ending over time


@pytest.mark.parametrize("case", list(singles(HAPPY))[::STEP], ids=str)
def test_one_boundary(case: Case) -> None:
    """Whatever happens at this boundary: the same ledger and the same bytes in the end."""
    assert objections(case, HAPPY) == []


def test_a_submit_that_was_stored_and_answered_with_an_error() -> None:
    """The same request comes again, and the job of the first is driven (3f93415)."""
    stored = next(n for n, (_, what) in enumerate(HAPPY.boundaries) if what.startswith("job.submitted"))

    assert objections(Case(((stored, "effect, then error"),)), HAPPY) == []


@pytest.mark.parametrize("synced", ["models/tiny", "models"])
def test_killed_between_the_rename_of_the_model_and_a_sync(synced: str) -> None:
    """The next process finds the model in its place, and gives no receipt for what a power cut would take back."""
    number = max(n for n, (_, what) in enumerate(HAPPY.boundaries) if what == f"homeport.sync_folder {synced}")

    assert objections(Case(((number, "crash before"),)), HAPPY) == []


@pytest.mark.parametrize("kind", ["commit", "market", "box", "file"])
def test_every_kind_is_counted(kind: str) -> None:
    """The happy path meets boundaries of all four kinds."""
    assert any(each == kind for each, _ in HAPPY.boundaries)


def test_another_end_is_seen() -> None:
    """I24 fires: the happy path itself objects to a ledger that it does not come to."""
    assert objections(Case(()), replace(HAPPY, ledger=("DESTROYED",)))[0].startswith("I24")
