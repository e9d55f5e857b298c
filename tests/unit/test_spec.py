"""The job file: what is accepted, what is refused and in which words, and its canonical form."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.domain import units
from daemon.domain.spec import JobSpec, from_canonical, parse
from daemon.errors import SpecError

MINIMAL = "version: 1\nname: bot\nmodel: owner/base@main\nsft: {data: sft.jsonl}\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("sft.jsonl", "dpo.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def read(text: str, base: Path) -> JobSpec:
    return parse(text, source="job.yaml", base=base)


def objections(text: str, base: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(text, base)
    return caught.value.problems


def test_a_short_spec_is_filled_with_defaults(base):
    """Three keys and a stage are enough; the defaults are those of the design."""
    spec = read(MINIMAL, base)

    assert (spec.sft.epochs, spec.sft.lr, spec.dpo) == (1.0, 2e-4, None)
    assert (spec.batch_size, spec.placement, spec.export.gguf) == (32, "auto_map", ("Q8_0",))
    assert (spec.checkpoint.every, spec.checkpoint.keep) == (100, 3)
    assert spec.limits.hold == 2_000_000
    assert spec.integration.sft_rows is None


def _bomb(levels: int) -> str:
    lists = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]" for n in range(levels)]
    return "\n".join(lists) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_bomb(30), "unfolds to more than 10,000 values"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2_000)), "values"),
        (f"a: {'[' * 500}{']' * 500}\n", "too deep"),
    ],
    ids=["bomb", "chain", "brackets"],
)
def test_a_file_that_unfolds_without_an_end_is_refused(base: Path, text: str, said: str):
    """At once: the daemon reads job files between its looks at machines."""
    (problem,) = objections(MINIMAL + text, base)

    assert problem.startswith("job.yaml:1: ") and said in problem


def test_aliases_are_read(base: Path):
    """What is written once and used twice is the same as written twice."""
    spec = read(MINIMAL + "eval: &same {data: eval.jsonl}\ndpo: *same\n", base)

    assert spec.data == {"sft": "sft.jsonl", "dpo": "eval.jsonl", "eval": "eval.jsonl"}


def test_a_full_spec_means_what_it_looks_like(base):
    """YAML 1.2 numbers and human units are read into micro-dollars, seconds and GB."""
    text = """
version: 1
name: forex-v2
model: owner/base
sft: {data: sft.jsonl, epochs: 2, lr: 2e-4, max_steps: 330, lora: {r: 8, alpha: 16}}
dpo: {data: dpo.jsonl, lr: 5e-6, beta: 0.2}
eval: {data: eval.jsonl}
export: {gguf: [Q8_0, Q4_K_M], adapter: true}
integration: {tag: V2 FOREX INTEGRATION, sft_rows: 15300, dpo_rows: 2550}
machine: {gpu: H100, count: 8, vram: 80GB+, disk: 0.5TB, rental: on-demand}
limits: {price: $20/h, cost: 16.00, time: 1h30m, hold: $3, line: 100Mbit}
verify: {level: hash}
deliver: auto
destroy: ask
"""

    spec = read(text, base)

    assert (spec.sft.epochs, spec.sft.lr, spec.sft.max_steps) == (2.0, 0.0002, 330)
    assert (spec.dpo.lr, spec.dpo.beta) == (5e-6, 0.2)
    assert (spec.lora.r, spec.lora.alpha) == (8, 16)
    assert (spec.machine.gpu, spec.machine.count, spec.machine.vram, spec.machine.disk) == (("H100",), 8, 80, 500)
    limits = spec.limits
    assert (limits.price, limits.cost, limits.time, limits.hold) == (20_000_000, 16_000_000, 5400, 3_000_000)
    assert (limits.line, spec.deliver) == (100, "auto")
    assert spec.data == {"sft": "sft.jsonl", "dpo": "dpo.jsonl", "eval": "eval.jsonl"}


def test_the_canonical_form_is_the_whole_spec(base):
    """It reads back equal, does not depend on how the file was written, and changes with any setting."""
    spec = read(MINIMAL, base)
    reordered = read("model: owner/base@main\nname: bot\nversion: 1\nsft:\n  epochs: 1\n  data: sft.jsonl\n", base)
    other = read(MINIMAL + "seed: 43\n", base)

    assert from_canonical(spec.canonical_json()) == spec
    assert spec.sha256 == reordered.sha256
    assert spec.sha256 != other.sha256


def test_what_a_person_expects_may_have_fractions(base):
    """An expected step is read to the tenth of a second, an expected stage in any unit of time."""
    spec = read(MINIMAL + "expect: {step: 4.4s, sft: 25m, gguf: 1h30m}\n", base)

    assert spec.expect.model_dump() == {"step": 4.4, "sft": 1500, "dpo": None, "gguf": 5400}


@pytest.mark.parametrize("name", ["CON", "nul", "com1", "LPT9", "aux.v2", "bot."])
def test_names_that_windows_cannot_have(base, name):
    """The model's folder has the job's name, and the disk may be read there; near misses are fine everywhere."""
    (problem,) = objections(MINIMAL.replace("name: bot", f"name: {name}"), base)

    assert problem.startswith("job.yaml:2: name:") and "Windows" in problem
    assert read(MINIMAL.replace("name: bot", f"name: x{name.rstrip('.')}"), base)


def test_a_price_is_by_the_hour(base):
    """`5`, `$5` and `5/h` are one price; the plan shows it as $5.00/h."""
    prices = [read(MINIMAL + f"limits: {{price: {text}}}\n", base).limits.price for text in ("5", "$5", "5/h", "$5/h")]

    assert prices == [5_000_000] * 4


def test_gates_are_named_one_by_one(base):
    """A limit belongs to a gate that there is."""
    assert read(MINIMAL + "gates: {reward_accuracy: 0}\n", base).gates.reward_accuracy == 0
    (problem,) = objections(MINIMAL + "gates: {reward_acuracy: 0.5}\n", base)
    assert "did you mean reward_accuracy?" in problem


def test_lora_inside_sft_is_corrected_where_it_stands(base):
    """A mistake in the short form is named by the line and the place where it was written."""
    text = MINIMAL.replace("sft: {data: sft.jsonl}", "sft:\n  data: sft.jsonl\n  lora: {r: none}")

    assert objections(text, base) == ["job.yaml:6: sft.lora.r: 'none' is not a whole number"]


def test_all_errors_come_at_once_with_their_lines(base):
    """Five mistakes give five messages, each with file, line and field, in the order of the file."""
    text = """version: 1
name: bot
model: owner/base
sft:
  data: sft.jsonl
  epoch: 2
  lr: fast
limits: {time: 8, price: cheap}
batch_size: -1
"""

    assert objections(text, base) == [
        "job.yaml:6: sft.epoch: unknown key (did you mean epochs?)",
        "job.yaml:7: sft.lr: 'fast' is not a number",
        "job.yaml:8: limits.time: 8 cannot be read (expected a time with its unit, such as 90m, 8h or 1d12h)",
        "job.yaml:8: limits.price: cheap cannot be read (expected dollars per hour above zero, such as $0.60/h)",
        "job.yaml:9: batch_size: -1 is too small (expected more than 0)",
    ]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("lr: 1e-4", "5: lr: unknown key here (did you mean sft.lr or dpo.lr?)"),
        ("lora: {rank: 8}", "5: lora.rank: unknown key (expected one of alpha, dropout, r)"),
        ("mashine: {}", "5: mashine: unknown key (did you mean machine?)"),
        ("verify: {level: none}", "5: verify.level: 'none' is not known (expected 'full' or 'hash')"),
        ("export: {gguf: [Q8_0, Q9]}", "5: export.gguf.1: 'Q9' is not known (expected 'F16', 'BF16', 'Q8_0',"),
        ("export: {gguf: []}", "5: export.gguf: is empty"),
        ("machine: 8", "5: machine: 8 is not a table of keys"),
        ("seed: true", "5: seed: True is not a whole number"),
        ("placement: ddp\nbatch_size: 30\nmachine: {count: 8}", "6: batch_size: 30 cannot be shared by 8 GPUs"),
        ("placement: DeepSpeed", "5: placement: DeepSpeed is refused: its shards change the arithmetic"),
        ("start_from: ''", "5: start_from: is empty"),
        ("speed: turbo", "5: speed: 'turbo' is not known (expected 'fast' or 'plain')"),
        ("reasoning: maybe", "5: reasoning: 'maybe' is not known (expected 'auto', 'keep', 'empty' or 'none')"),
        ("max_length: 8", "5: max_length: 8 is too small (expected 16 or more)"),
        ("deliver: ftp", "5: deliver: 'ftp' is not known (expected 'download', 'rebuild' or 'auto')"),
        ("output: x", "5: output: x is not in this release yet (leave it out)"),
        ("eval: {data: eval.jsonl, compare_to: ''}", "5: eval.compare_to: is empty"),
        ("export: {adapter: false}", "5: export.adapter: false is not in this release yet (expected true)"),
        ("machine: {rental: interruptible}", "5: machine.rental: interruptible is not in this release yet"),
        ("eval: {data: none.jsonl}", "5: eval.data: none.jsonl is no file (looked in"),
        ("eval: {data: ~nobody-of-this-name/x}", "5: eval.data: ~nobody-of-this-name/x is no file (looked in"),
        (f"eval: {{data: {'x' * 300}}}", f"5: eval.data: {'x' * 300} is no file (looked in"),
        ("micro_batch_size: 5", "5: micro_batch_size: does not divide batch_size 32"),
        ("integration: {dpo_rows: 5}", "5: integration.dpo_rows: counts rows of a stage that the spec does not have"),
        ("version: 1", "5: found duplicate key"),
        ("machine: {gpu: [", "6: "),
    ],
)
def test_a_refusal_says_what_was_expected(base, extra, expected):
    """One mistake in an otherwise sound file gives one message."""
    (problem,) = objections(MINIMAL + extra + "\n", base)

    assert problem.startswith(f"job.yaml:{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: bot\nmodel: o/b\nsft: {data: sft.jsonl}\n", ":1: version: is required"),
        ("version: 2\nname: bot\nmodel: o/b\nsft: {data: sft.jsonl}\n", ":1: version: 2 is not known (expected 1)"),
        ("version: 1\nname: bot\nmodel: o/b\n", ":1: sft: there is nothing to train (expected sft, dpo or both)"),
        ("version: 1\nname: ../x\nmodel: o/b\nsft: {data: sft.jsonl}\n", ":2: name: '../x' cannot be used"),
        (
            "version: 1\nname: bot\nmodel: nowhere\nsft: {data: sft.jsonl}\n",
            ":3: model: nowhere is neither a folder nor",
        ),
        ("- 1\n", ":1: the file must be a table of keys"),
        ("", ":1: the file must be a table of keys"),
    ],
)
def test_what_every_spec_must_have(base, text, expected):
    """Version, a usable name, a model and something to train."""
    (problem,) = objections(text, base)

    assert problem.startswith("job.yaml" + expected)


@pytest.mark.parametrize(
    ("read_unit", "text", "value"),
    [
        (units.dollars, "$8", 8_000_000),
        (units.dollars, 0.5, 500_000),
        (units.dollars_per_hour, "0.60/h", 600_000),
        (units.dollars_per_hour, "$0.60/h", 600_000),
        (units.duration, "90m", 5400),
        (units.duration, "1d 12h", 129_600),
        (units.gigabytes, "24GB+", 24),
        (units.gigabytes, "24GiB", 26),
        (units.gigabytes, 100, 100),
        (units.megabits, "1Gbit/s", 1000),
    ],
)
def test_units_are_read(read_unit, text, value):
    """What people write, in micro-dollars, seconds, GB and Mb/s."""
    assert read_unit(text) == value


@pytest.mark.parametrize(
    ("read_unit", "text"),
    [
        (units.dollars, "-1"), (units.dollars, "nan"), (units.dollars, True), (units.dollars, "8 EUR"),
        (units.dollars_per_hour, "0.6/m"), (units.duration, 8), (units.duration, "8"), (units.duration, "8h!"),
        (units.duration, "0h"), (units.gigabytes, "24 apples"), (units.gigabytes, 0), (units.gigabytes, True),
        (units.megabits, 100), (units.megabits, "100MB"),
    ],
)  # fmt: skip
def test_units_that_could_mean_something_else_are_refused(read_unit, text):
    """Nonsense, zero, and numbers whose unit would have to be guessed."""
    with pytest.raises(ValueError, match=r"such as|above zero"):
        read_unit(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45, "45s"), (59.6, "1m"), (725, "12m"), (3600, "1h"), (5700, "1h35m"), (7199, "2h"), (273_600, "3d4h")],
)
def test_durations_are_shown_in_two_units(seconds, text):
    """Rounded to what a person needs."""
    assert units.show_duration(seconds) == text
