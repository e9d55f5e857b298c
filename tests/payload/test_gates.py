"""The gates over numbers: what each lets pass, what it stops, and when it has too little to go by."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from daemon.domain.spec import Gates
from remote_payload import gates
from remote_payload.contract import Exit, Stage
from remote_payload.gates import GATES, judge, loss_rise, norm_rise

DOCUMENT = Path(__file__).parents[2] / "docs/training.md"
NAN, INFINITY = float("nan"), float("inf")

# gate, a value that passes, one that does not
CASES = [
    ("finite", 12.5, INFINITY),
    ("finite", 0.0, NAN),
    ("loss_not_zero", 1e-9, 0.0),
    ("loss_rise", 1.5, 1.6),
    ("grad_norm", 100.0, 101.0),
    ("first_dpo_loss", 0.0009, 0.0011),
    ("reward_accuracy", 0.6, 0.59),
    ("reward_margin", 0.001, 0.0),
    ("chosen_fall", 0.29, 0.31),
    ("loss_fall", 0.0, -0.001),
    ("held_out_nll", 0.02, 0.019),
    ("sft_perplexity", 0.05, 0.051),
]


@pytest.mark.parametrize(("name", "good", "bad"), CASES)
def test_limits(name: str, good: float, bad: float) -> None:
    """Each gate passes what keeps to its limit, stops what does not, and stops what is no number."""
    enough = GATES[name].least
    passed, stopped, nonsense = (judge(name, value, enough, {}) for value in (good, bad, NAN))

    assert passed is not None
    assert stopped is not None
    assert nonsense is not None
    assert (passed.ok, stopped.ok, nonsense.ok) == (True, False, False)


def test_every_gate_has_a_case() -> None:
    """A gate added to the table is tried here."""
    assert {name for name, _, _ in CASES} == GATES.keys()


@pytest.mark.parametrize("name", GATES)
def test_too_little_says_nothing(name: str) -> None:
    """Below the least number of rows, pairs or steps even the worst value ends nothing."""
    assert judge(name, NAN, GATES[name].least - 1, {}) is None


def test_the_job_sets_limits() -> None:
    """A job's own limit takes the place of the table's."""
    stricter = judge("reward_accuracy", 0.7, 500, {"reward_accuracy": 0.8})

    assert stricter is not None
    assert not stricter.ok
    assert str(stricter) == "gate reward_accuracy: share of pairs right is 0.7, at least 0.8 is required"


def test_every_code_is_a_gates_own() -> None:
    """A gate ends its stage with an exit code that says which kind of trouble it is."""
    assert {gate.code for gate in GATES.values()} == {Exit.DIVERGED, Exit.NOT_LEARNING, Exit.DPO_GATE}


def test_a_lasting_rise_is_seen() -> None:
    """Twenty losses in a row over the limit are a rise; nineteen and a good one are noise."""
    calm = [1.0] * 40

    assert loss_rise(calm + [1.6] * 20, floor=0.01) == pytest.approx(1.6)
    assert loss_rise(calm + [9.0] * 19, floor=0.01) == 1.0
    assert loss_rise([1.0] * 20 + [1.6] * 20, floor=0.01) == pytest.approx(1.6)  # the median is of those before
    assert loss_rise([5.0] * 20, floor=0.01) == 1.0


def test_a_fall_is_told_from_beginning_and_end() -> None:
    """From 2 to 1.5 is a fall by a quarter, whatever came between; of losses that are nearly nought there is none."""
    assert gates.loss_fall([2.0] * 20 + [9.0] * 160 + [1.5] * 20, floor=0.01) == pytest.approx(0.25)
    assert gates.loss_fall([1.5] * 20 + [0.1] * 160 + [2.0] * 20, floor=0.01) == pytest.approx(-1 / 3)
    assert gates.loss_fall([0.001] * 20 + [0.009] * 180, floor=0.01) == 0


def test_a_healthy_run_is_let_alone() -> None:
    """A noisy loss that falls, with its gradient norms, passes at every one of 500 steps, and fell from every 200th."""
    draw = random.Random(7)
    losses = [(1 + 2 * math.exp(-step / 60)) * draw.lognormvariate(0, 0.25) for step in range(500)]
    norms = [draw.lognormvariate(-1, 0.8) for _ in range(500)]

    for step in range(1, 501):
        assert gates.GATES["loss_rise"].rule(loss_rise(losses[:step], gates.FLOORS[Stage.SFT]), 1.5)
        assert gates.GATES["grad_norm"].rule(norm_rise(norms[:step]), 100)
        assert step < 200 or gates.loss_fall(losses[:step], gates.FLOORS[Stage.SFT]) > 0


def test_a_solved_preference_is_no_divergence() -> None:
    """Once every pair is told right, DPO's loss and norms are tiny and swing by factors; that is no trouble."""
    losses = [0.69] + [1e-4] * 40 + [1e-2] * 20
    norms = [1e-6] * 40 + [0.9]

    assert loss_rise(losses, gates.FLOORS[Stage.DPO]) < 1
    assert norm_rise(norms) <= 100


def test_fall_of_the_chosen_answers() -> None:
    """From -100 under the reference to -130 is a fall of 0.3, whatever beta; a rise is negative."""
    for beta in (0.1, 0.5):
        assert gates.chosen_fall(beta * -30, -130, beta) == pytest.approx(0.3)
        assert gates.chosen_fall(beta * 10, -90, beta) == pytest.approx(-0.1)


@pytest.mark.parametrize("gate", GATES.values(), ids=lambda gate: gate.name)
def test_every_gate_is_documented(gate: gates.Gate) -> None:
    """Its row in training.md names the stages, the limit, what it needs and the exit code of the table."""
    row = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{gate.name}` |"))

    _, _, stages, when, _, limit, needs, code, _ = (cell.strip() for cell in row.split("|"))
    assert stages == ", ".join(gate.stages)
    assert when == {"step": "every step", "after": "after it"}.get(gate.when, gate.when)
    assert limit.split()[-1] in (f"{gate.limit:g}", "number")
    assert needs.startswith(f"{gate.least} {gate.unit[:-1]}")
    assert code == str(int(gate.code))


def test_a_job_file_sets_limits_of_gates_that_there_are() -> None:
    """Every key of `gates:` is a gate's name."""
    assert Gates.model_fields.keys() < GATES.keys()
