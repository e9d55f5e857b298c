"""The lifecycle table, the machine that executes it, and the page printed from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.domain import lifecycle_page
from daemon.domain.holds import HOLDS, HoldReason, Release
from daemon.domain.lifecycle import EDGES, FACTS, MAIN_LINE, TERMINAL, Guard, JobState, Trigger
from daemon.domain.machine import Facts, IllegalTransition, fire

EVERYTHING_FINE = Facts(has_sft=True, has_dpo=True, nothing_rented=True, has_receipt=True)
SFT_ONLY = Facts(has_sft=True, has_dpo=False, nothing_rented=True, has_receipt=True)
DPO_ONLY = Facts(has_sft=False, has_dpo=True, nothing_rented=True, has_receipt=True)
RENTED = Facts(has_sft=True, has_dpo=True, nothing_rented=False, has_receipt=True)
NO_RECEIPT = Facts(has_sft=True, has_dpo=True, nothing_rented=True, has_receipt=False)

ALLOWED = [
    (JobState.QUEUED, Trigger.PROVISION, EVERYTHING_FINE, JobState.PROVISIONED),
    (JobState.PROVISIONED, Trigger.START_SFT, EVERYTHING_FINE, JobState.SFT),
    (JobState.PROVISIONED, Trigger.START_DPO, DPO_ONLY, JobState.DPO),
    (JobState.SFT, Trigger.START_DPO, EVERYTHING_FINE, JobState.DPO),
    (JobState.SFT, Trigger.START_GGUF, SFT_ONLY, JobState.GGUF),
    (JobState.DPO, Trigger.START_GGUF, EVERYTHING_FINE, JobState.GGUF),
    (JobState.GGUF, Trigger.DOWNLOAD, RENTED, JobState.DOWNLOADED),
    (JobState.DOWNLOADED, Trigger.VERIFY, RENTED, JobState.VERIFIED),
    (JobState.VERIFIED, Trigger.CONFIRM_DESTROYED, EVERYTHING_FINE, JobState.DESTROYED),
    (JobState.VERIFIED, Trigger.ARTIFACT_LOST, RENTED, JobState.GGUF),
    (JobState.SFT, Trigger.RETRY, RENTED, JobState.QUEUED),
]
REFUSED = [
    (JobState.QUEUED, Trigger.START_SFT, EVERYTHING_FINE),
    (JobState.PROVISIONED, Trigger.START_DPO, EVERYTHING_FINE),
    (JobState.SFT, Trigger.START_GGUF, EVERYTHING_FINE),
    (JobState.DOWNLOADED, Trigger.VERIFY, NO_RECEIPT),
    (JobState.VERIFIED, Trigger.CONFIRM_DESTROYED, RENTED),
    (JobState.GGUF, Trigger.CONFIRM_DESTROYED, EVERYTHING_FINE),
    (JobState.SFT, Trigger.CANCEL, RENTED),
    (JobState.GGUF, Trigger.ABANDON, RENTED),
    (JobState.DESTROYED, Trigger.RETRY, EVERYTHING_FINE),
]


@pytest.mark.parametrize(("state", "trigger", "facts", "target"), ALLOWED)
def test_allowed(state: JobState, trigger: Trigger, facts: Facts, target: JobState) -> None:
    """An edge whose guards hold leads where the table says."""
    assert fire(state, trigger, facts) is target


@pytest.mark.parametrize(("state", "trigger", "facts"), REFUSED)
def test_refused(state: JobState, trigger: Trigger, facts: Facts) -> None:
    """A missing edge, or a guard that does not hold, is refused loudly."""
    with pytest.raises(IllegalTransition):
        fire(state, trigger, facts)


def test_destroyed_has_one_road() -> None:
    """Only VERIFIED leads to DESTROYED, by a receipt and with nothing rented any more."""
    (edge,) = [e for e in EDGES if e.target is JobState.DESTROYED]

    assert edge.source is JobState.VERIFIED
    assert set(edge.guards) == {Guard.RECEIPT, Guard.NOTHING_RENTED}


def test_no_terminal_state_with_something_rented() -> None:
    """Every edge into a terminal state is guarded by `nothing rented`."""
    assert all(Guard.NOTHING_RENTED in e.guards for e in EDGES if e.target in TERMINAL)


def test_backward_edges_are_the_two_named_ones() -> None:
    """The main line is left backwards only by retry and artifact_lost."""
    order = {state: n for n, state in enumerate(MAIN_LINE)}
    backwards = {
        e.trigger for e in EDGES if e.target in order and e.source in order and order[e.target] < order[e.source]
    }

    assert backwards == {Trigger.RETRY, Trigger.ARTIFACT_LOST} == {e.trigger for e in EDGES if e.backward}


def test_terminal_states_are_left_by_no_edge() -> None:
    """What has ended stays ended."""
    assert not [e for e in EDGES if e.source in TERMINAL]


def test_every_state_and_hold_has_its_row() -> None:
    """No state without its fact, no reason to hold without a rule and two ways out."""
    assert set(FACTS) == set(JobState)
    assert set(HOLDS) == set(HoldReason)
    assert all(len(hold.commands) == 2 for hold in HOLDS.values())
    assert {hold.release for hold in HOLDS.values()} == set(Release)


def test_the_page_is_current() -> None:
    """docs/lifecycle.md is what the tables print today."""
    on_disk = (Path(__file__).parents[2] / "docs/lifecycle.md").read_text(encoding="utf-8")

    assert on_disk == lifecycle_page.page(), "run: python -m daemon.domain.lifecycle_page > docs/lifecycle.md"
