"""A training that its own numbers speak against is held: the numbers are told, and what there is of it is kept."""

from __future__ import annotations

import pytest
from conftest import MakeHome, MakeJob

TRAINING_S = 600.0
SPEC = {
    "sft": "{data: sft.jsonl, lr: 0.002, max_steps: 4}",
    "dpo": "",
    "integration": "",
    "checkpoint": "{every: 2, keep: 2}",
    "eval": "{data: eval.jsonl}",
    "gates": "{held_out_nll: 50}",  # nats a token: more than there are
}


@pytest.mark.full
def test_a_model_that_is_no_better_is_held(home: MakeHome, job_file: MakeJob) -> None:
    """The hold, its event and `show` have value, limit and the newest whole checkpoint; the machine is not let go."""
    one = home(real=True)
    one.start()
    spec = job_file("hopeless", **SPEC)
    rows = (spec.parent / "sft.jsonl").read_text().splitlines(keepends=True)
    (spec.parent / "eval.jsonl").write_text("".join(rows[:16]))

    job = one.submit(spec)
    view = one.reach(job, "HELD", within_s=TRAINING_S)

    said = view["hold"]["detail"]
    assert (view["state"], view["hold"]["reason"]) == ("SFT", "STAGE_FAILED")
    assert said.startswith("SFT: gate held_out_nll: fall in nats a token is ")
    assert "at least 50 is required (exit 41, newest whole checkpoint run/sft/checkpoint-4)" in said
    assert [event["detail"] for event in one.events(job, "job.held")] == [said]
    assert "newest whole checkpoint" in " ".join(one.jobctl("show", job).stdout.split())
    assert [machine["destroyed_at"] for machine in one.ledger()] == [None]
