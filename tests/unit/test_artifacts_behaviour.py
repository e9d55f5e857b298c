"""What L5 concludes from numbers: the gates one by one, on small made-up distributions."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from daemon.artifacts import behaviour, child
from daemon.artifacts.divergence import distance, divergence
from daemon.artifacts.reference import Distribution, Prompt, Reference
from remote_payload.contract import ContractError, Quality, dump, load

POSITIONS = 40
TUNED, BASE = (0.7, 0.2, 0.1), (0.2, 0.7, 0.1)  # probabilities of tokens 0, 1 and 2 of a vocabulary of 4
NEAR = (0.69, 0.21, 0.1)  # 0.0003 nats from TUNED


def distribution(probabilities: Sequence[float]) -> Distribution:
    """Tokens 0, 1, 2 likeliest first; the rest is the fourth token."""
    top = sorted(enumerate(map(math.log, probabilities)), key=lambda pair: -pair[1])
    return Distribution(tuple(top), math.log(max(1 - sum(probabilities), 1e-9)))


def reference(tuned: Sequence[float] = TUNED, base: Sequence[float] = BASE) -> Reference:
    """One prompt whose every position has these two distributions."""
    prompt = Prompt(
        "hi", (3, *[0] * POSITIONS), 1, (distribution(tuned),) * POSITIONS, (distribution(base),) * POSITIONS
    )
    return Reference(4, 0, (("probe", (1, 2)),), (prompt,))


def reply(asked: Reference, local: Sequence[float], **changes: object) -> child.Reply:
    """The answers of a file whose every position has the distribution `local`."""
    logs = dict(distribution(local).top)
    (prompt,) = asked.prompts
    sets = [tuple(logs[token] for token, _ in d.top) for d in (prompt.tuned[0], prompt.base[0])]
    position = child.Position(
        max(logs, key=lambda t: logs[t]), tuple(child.Scores(s, distribution(local).tail) for s in sets)
    )
    fields: dict[str, object] = {
        "vocabulary": 4,
        "tokens": ((1, 2), (3,)),
        "stops": (True,),
        "prompts": ((position,) * POSITIONS,),
        "greedy_text": "",
        "greedy_ended": True,
        "load_s": 0.0,
        "score_s": 0.0,
    }
    return child.Reply(**fields | changes)  # type: ignore[arg-type]


def box(kl_mean: float = 0.0003, top1: float = 1.0) -> Quality:
    """What the box measured for its own file."""
    return Quality("Q8_0", kl_mean, kl_mean, kl_mean, top1, POSITIONS, 0.6)


def test_a_file_near_the_tuned_model_passes() -> None:
    """Close to the trained model, far from the base model: passed without a warning."""
    asked = reference()

    level = behaviour.judge(asked, reply(asked, NEAR), "Q8_0", box())

    assert level.passed and not level.warnings
    assert level.numbers["kl_mean"] == pytest.approx(0.000314, abs=1e-6)
    assert level.numbers["top1"] == 1.0


FAILURES = [
    ("the base model itself", BASE, box(), {}, "nats from the trained model"),
    ("three times what the box measured", (0.65, 0.25, 0.1), box(0.001), {}, "0.0030 allowed"),
    ("the box claims that anything is fine", BASE, box(kl_mean=9.0), {}, "0.0200 allowed"),
    ("no number from the box", BASE, None, {}, "0.0200 allowed"),
    ("another vocabulary", NEAR, box(), {"vocabulary": 5}, "5 tokens, the trained model has 4"),
    ("another tokenizer", NEAR, box(), {"tokens": ((2, 1), (3,))}, "splits 'probe' into other tokens"),
    ("another split of the prompt", NEAR, box(), {"tokens": ((1, 2), (0,))}, "splits 'hi' into other tokens"),
    ("an end that the file does not mark", NEAR, box(), {"stops": (False,)}, "it would run on"),
    ("not a number", NEAR, box(), {"prompts": ((None,) * POSITIONS,)}, "not numbers at 40 positions"),
]


@pytest.mark.parametrize(
    ("local", "quality", "changes", "says"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES]
)
def test_fails(local: Sequence[float], quality: Quality | None, changes: dict[str, object], says: str) -> None:
    """Each gate refuses what it is meant for and says by how much."""
    asked = reference()

    level = behaviour.judge(asked, reply(asked, local, **changes), "Q8_0", quality)

    assert not level.passed
    assert says in level.problem


def test_other_likeliest_tokens_fail_though_the_divergence_is_small() -> None:
    """Where two tokens are nearly even, a small divergence may hide that every choice is another one."""
    asked = reference(tuned=(0.46, 0.44, 0.1))

    level = behaviour.judge(asked, reply(asked, (0.44, 0.46, 0.1)), "Q8_0", box(0.001))

    assert "agrees on 0.0% of the tokens" in level.problem


def test_answers_that_do_not_end_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """One position in forty is below what the other gates see; an answer that runs on for ever is not."""
    monkeypatch.setattr(behaviour, "TOP1_SLACK", 1.0)
    asked = reference()
    near = reply(asked, NEAR)
    last = reply(asked, BASE).prompts[0][-1]

    level = behaviour.judge(asked, dataclasses.replace(near, prompts=((*near.prompts[0][:-1], last),)), "Q4_K_M", None)

    assert "none of 1 answers ends" in level.problem


def test_an_end_that_is_nearly_as_likely_as_the_choice_is_one() -> None:
    """Of a sound file the only answer that ended within the tokens tried may end at a position that is nearly even."""
    asked = reference(tuned=(0.45, 0.44, 0.11))
    near = reply(asked, (0.45, 0.44, 0.11))
    last = reply(asked, (0.44, 0.45, 0.11)).prompts[0][-1]

    level = behaviour.judge(asked, dataclasses.replace(near, prompts=((*near.prompts[0][:-1], last),)), "Q8_0", box())

    assert level.passed, level.problem


def test_an_end_that_was_never_seen_is_a_warning() -> None:
    """The reference answers were cut off and the local one too: that it stops is not known, and said so."""
    asked = dataclasses.replace(reference(), end=None)

    level = behaviour.judge(asked, reply(asked, NEAR, stops=(False,), greedy_ended=False), "Q8_0", box())

    assert level.passed and "stopping was not seen" in level.warnings[0]


def test_an_effect_below_the_noise_is_a_warning() -> None:
    """Training that moved the model less than quantisation does cannot be seen, and is said, not passed over."""
    asked = reference(base=(0.701, 0.199, 0.1))

    level = behaviour.judge(asked, reply(asked, (0.7005, 0.1995, 0.1)), "Q8_0", box())

    assert level.passed
    assert "adapter effect not measurable" in level.warnings[0]


def test_training_that_changed_nothing_is_a_warning() -> None:
    """A file equal to both models, because the adapter does nothing, is not "far from the base model"."""
    asked = reference(base=TUNED)

    level = behaviour.judge(asked, reply(asked, TUNED), "F16", box(0.0))

    assert level.passed
    assert "adapter effect not measurable" in level.warnings[0]


def test_a_limit_that_is_no_number_does_not_come_home() -> None:
    """A box cannot lift a gate by reporting NaN: its manifest is refused as it is read."""
    honest = dump(box(0.5))

    assert load(Quality, honest) == box(0.5)
    with pytest.raises(ContractError, match="NaN is not a number"):
        load(Quality, honest.replace("0.5", "NaN"))


def test_leaning_to_the_base_model_fails_even_below_the_noise() -> None:
    """Within the noise, a file that is nearer to the base model at position after position is the base model."""
    base = (0.71, 0.19, 0.1)
    asked = reference(base=base)
    exact = reply(asked, base)
    off = reply(asked, (0.712, 0.188, 0.1))
    alternating = tuple((exact if i % 2 else off).prompts[0][i] for i in range(POSITIONS))

    level = behaviour.judge(asked, reply(asked, base, prompts=(alternating,)), "Q8_0", box())

    assert not level.passed
    assert "as near to the base model" in level.problem


async def test_too_few_positions_prove_nothing() -> None:
    """A reference of a few tokens would let anything pass."""
    asked = reference()
    (prompt,) = asked.prompts
    short = Prompt("hi", prompt.ids[:4], 1, prompt.tuned[:3], prompt.base[:3])

    result = await behaviour.check(Path("/nowhere.gguf"), 1, Reference(4, 0, (), (short,)), "Q8_0", box())

    assert "only 3 positions" in result.level.problem


async def test_without_memory_it_is_not_run_rather_than_passed() -> None:
    """A file too large for this computer's memory ends as not run."""
    result = await behaviour.check(Path("/nowhere.gguf"), 1 << 50, reference(), "Q8_0", box())

    assert not result.level.passed and not result.level.ran
    assert "memory" in result.level.problem


def test_divergence_is_zero_for_itself_and_known_for_two() -> None:
    """KL by hand: 0.7 ln(0.7/0.2) + 0.2 ln(0.2/0.7), whichever way the two are given."""
    tuned, base = distribution(TUNED), distribution(BASE)
    expected = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.7)

    logs = [dict(base.top)[token] for token, _ in tuned.top]
    assert divergence(tuned, [log for _, log in tuned.top], tuned.tail) == 0
    assert divergence(tuned, logs, base.tail) == pytest.approx(expected)
    assert distance(tuned, base) == pytest.approx(expected)
    assert distance(tuned, tuned) == 0
