"""The job file: what is trained, on what machine, within which limits.

`parse` reads what a person wrote and reports everything that is wrong with it at once. Inside, money is micro-dollars,
time seconds, disk and memory whole GB; `canonical_json` is that form with every default filled in, and its sha256 is
what an attempt is recorded under.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.domain import units
from daemon.domain.spec_problems import problems
from daemon.domain.spec_yaml import Document, Where, load
from daemon.errors import SpecError

Quant = Literal["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
Positive = Annotated[int, Field(gt=0)]


class Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Training(Block):
    """One stage. `data` is a path relative to the job file; `max_steps` caps the steps that rows and epochs give."""

    data: str
    epochs: float = Field(default=1.0, gt=0)
    lr: float = Field(default=2e-4, gt=0, lt=1)
    max_steps: Positive | None = None


class Preference(Training):
    lr: float = Field(default=1e-5, gt=0, lt=1)
    beta: float = Field(default=0.1, gt=0)


class Lora(Block):
    r: Positive = 16
    alpha: Positive = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Export(Block):
    """The adapter always comes home; `gguf` names the merged model's quantisations."""

    gguf: tuple[Quant, ...] = Field(default=("Q8_0",), min_length=1)


class Integration(Block):
    """The line that the box must print before any stage starts. Rows left out are those counted at submit."""

    tag: str = Field(default="HOMEPORT INTEGRATION", min_length=1, max_length=100, pattern=r"^[^\r\n]+$")
    sft_rows: int | None = Field(default=None, ge=0)
    dpo_rows: int | None = Field(default=None, ge=0)


class Checkpoint(Block):
    every: Positive = 100  # steps
    keep: Positive = 3


class Eval(Block):
    """`choices` are words of which each answer says one; a model that finds another likelier has it wrong."""

    data: str
    choices: tuple[str, ...] = ()
    compare_to: str | None = Field(default=None, min_length=1)  # a job, or a folder relative to the job file


class Gates(Block):
    """Limits at which a stage is ended, in place of those of docs/training.md."""

    loss_rise: float | None = Field(default=None, gt=0)
    grad_norm: float | None = Field(default=None, gt=0)
    reward_accuracy: float | None = None
    reward_margin: float | None = None
    chosen_fall: float | None = None
    loss_fall: float | None = None
    held_out_nll: float | None = None
    sft_perplexity: float | None = None


class Expect(Block):
    """What a person expects, in seconds, shown beside what happens: of one training step, and of each stage."""

    step: float | None = Field(default=None, gt=0)
    sft: float | None = Field(default=None, gt=0)
    dpo: float | None = Field(default=None, gt=0)
    gguf: float | None = Field(default=None, gt=0)


class Machine(Block):
    """`gpu` empty: any. `vram` per GPU and `disk` in GB; None: as much as the estimate needs."""

    gpu: tuple[str, ...] = ()
    count: Positive = 1
    vram: Positive | None = None
    disk: Positive | None = None
    verified: bool = True


class Limits(Block):
    """`price` in micro-dollars per hour, `cost` and `hold` in micro-dollars, `time` in seconds, `line` in Mb/s."""

    price: Positive | None = None
    cost: Positive | None = None
    time: Positive | None = None
    hold: Positive = 2_000_000
    line: Positive | None = None


class Verify(Block):
    level: Literal["full", "hash"] = "full"


class JobSpec(Block):
    version: Literal[1]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    model: str = Field(min_length=1)
    start_from: str | None = Field(default=None, min_length=1)  # a job, or a folder relative to the job file
    sft: Training | None = None
    dpo: Preference | None = None
    lora: Lora = Lora()
    export: Export = Export()
    integration: Integration = Integration()
    batch_size: Positive = 32  # rows of one step, over all GPUs
    micro_batch_size: Positive | None = None
    placement: Literal["auto_map", "single", "ddp", "auto"] = "auto_map"
    speed: Literal["fast", "plain"] = "fast"
    checkpoint: Checkpoint = Checkpoint()
    max_length: Annotated[int, Field(ge=16)] | None = None  # tokens; None: the box derives it from the rows
    seed: int = Field(default=42, ge=0)
    reasoning: Literal["auto", "keep", "empty", "none"] = "auto"
    eval: Eval | None = None
    gates: Gates = Gates()
    expect: Expect = Expect()
    report_to: Literal["tensorboard", "wandb"] | None = None
    deliver: Literal["download", "rebuild", "auto"] = "download"
    destroy: Literal["auto", "ask"] = "auto"
    machine: Machine = Machine()
    limits: Limits = Limits()
    verify: Verify = Verify()

    def canonical_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    @property
    def adapters(self) -> dict[str, str]:
        """Earlier adapters as written, by what the job wants of them: start_from, compare_to."""
        wanted = {"start_from": self.start_from, "compare_to": self.eval.compare_to if self.eval else None}
        return {key: reference for key, reference in wanted.items() if reference}

    @property
    def data(self) -> dict[str, str]:
        """Paths as written, by kind: sft, dpo, eval."""
        blocks = {"sft": self.sft, "dpo": self.dpo, "eval": self.eval}
        return {kind: block.data for kind, block in blocks.items() if block is not None}


# What a person may write in human units, and how it is read.
HUMAN: dict[Where, Callable[[Any], float]] = {
    ("limits", "price"): units.dollars_per_hour,
    ("limits", "cost"): units.dollars,
    ("limits", "hold"): units.dollars,
    ("limits", "time"): units.duration,
    ("limits", "line"): units.megabits,
    **{("expect", name): units.seconds for name in Expect.model_fields},
    ("machine", "vram"): units.gigabytes,
    ("machine", "disk"): units.gigabytes,
}

# Words of the format that this release does not act on. Refused, not ignored: where the key has a value that means what
# happens anyway, that one is accepted.
NOT_YET: dict[Where, tuple[Any, ...]] = {
    ("export", "adapter"): (True,),
    ("export", "merged"): (False,),
    ("machine", "rental"): ("on-demand",),
    ("rescue",): ("auto",),
    ("output",): (),
    ("notify",): (),
    ("env",): (),
}
NOT_ON_WINDOWS = r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\."  # devices there, and a dot that it drops
HUB_ID = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"
PLACEMENTS_NEVER = {
    "deepspeed": "its shards change the arithmetic, and LoRA leaves too little optimizer state to be worth it",
    "fsdp": "its shards change the arithmetic, and LoRA leaves too little optimizer state to be worth it",
    "accelerate": "a launcher's own configuration would decide the placement instead of this file",
}


def parse(text: str, *, source: str, base: Path) -> JobSpec:
    """The spec in `text`. `source` names it in messages, `base` is the folder that its paths are relative to.

    Raises SpecError with every problem, in the order of the lines.
    """
    document = load(text, source)
    found: list[tuple[Where, str]] = []
    values = document.values
    for rule in (_shorthands, _not_yet, _placement, _human_units):
        found += rule(values)
    try:
        spec = JobSpec.model_validate(values)
    except ValidationError as error:
        found += problems(error, JobSpec)
    else:
        found += _contradictions(spec, base)
    if found:
        raise _refusal(document, found)
    return spec


def from_canonical(text: str) -> JobSpec:
    """The spec that `canonical_json` wrote. Raises ValidationError when the database holds something else."""
    return JobSpec.model_validate_json(text)


def _refusal(document: Document, found: list[tuple[Where, str]]) -> SpecError:
    if "lora" not in document.tree:  # it stood inside sft
        found = [(("sft", *where) if where[0] == "lora" else where, message) for where, message in found]
    ordered = sorted(found, key=lambda item: document.position(item[0]))
    return SpecError([document.at(where, message) for where, message in ordered])


# The rules take the values apart as far as they concern them, and yield what is wrong.

Found = Iterator[tuple[Where, str]]


def _shorthands(values: dict[str, Any]) -> Found:
    """`gpu: H100` is a list of one, as is `gguf: Q8_0`; `max_length: auto` is the default written out; `lora` may stand
    inside `sft`, which reads well."""
    for where in (("machine", "gpu"), ("export", "gguf")):
        block = _block_of(values, where)
        if block is not None and isinstance(block.get(where[-1]), str):
            block[where[-1]] = (block[where[-1]],)
    if values.get("max_length") == "auto":
        values["max_length"] = None
    sft = values.get("sft")
    if isinstance(sft, dict) and "lora" in sft:
        if "lora" in values:
            yield ("sft", "lora"), "lora is given twice (expected once, at the top or inside sft)"
        values["lora"] = sft.pop("lora")


def _not_yet(values: dict[str, Any]) -> Found:
    for where, accepted in NOT_YET.items():
        block = _block_of(values, where)
        if block is None or where[-1] not in block:
            continue
        if (value := block.pop(where[-1])) not in accepted:
            alternative = f"expected {_written(accepted[0])}" if accepted else "leave it out"
            yield where, f"{_written(value)} is not in this release yet ({alternative})"


def _placement(values: dict[str, Any]) -> Found:
    value = values.get("placement")
    if isinstance(value, str) and value.lower() in PLACEMENTS_NEVER:
        expected = "expected auto_map, single, ddp or auto"
        yield ("placement",), f"{value} is refused: {PLACEMENTS_NEVER[value.lower()]} ({expected})"
        del values["placement"]


def _human_units(values: dict[str, Any]) -> Found:
    for where, read in HUMAN.items():
        block = _block_of(values, where)
        if block is None or where[-1] not in block:
            continue
        value = block.pop(where[-1])
        if value is None or (where == ("machine", "disk") and value == "auto"):
            continue
        try:
            block[where[-1]] = read(value)
        except ValueError as error:
            yield where, f"{_written(value)} cannot be read (expected {error})"


def _block_of(values: dict[str, Any], where: Where) -> dict[Any, Any] | None:
    """The table that holds the last key of `where`."""
    for step in where[:-1]:
        inner = values.get(str(step))
        if not isinstance(inner, dict):
            return None
        values = inner
    return values


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _contradictions(spec: JobSpec, base: Path) -> Found:
    """What no single key shows."""
    if re.fullmatch(NOT_ON_WINDOWS, spec.name):
        yield ("name",), f"{spec.name} can be no folder on Windows (expected another name)"
    if spec.sft is None and spec.dpo is None:
        yield ("sft",), "there is nothing to train (expected sft, dpo or both)"
    if spec.micro_batch_size is not None and spec.batch_size % spec.micro_batch_size:
        yield ("micro_batch_size",), f"does not divide batch_size {spec.batch_size}"
    if spec.placement == "ddp" and spec.batch_size % spec.machine.count:
        yield ("batch_size",), f"{spec.batch_size} cannot be shared by {spec.machine.count} GPUs, as ddp shares it"
    if spec.integration.dpo_rows and spec.dpo is None:
        yield ("integration", "dpo_rows"), "counts rows of a stage that the spec does not have"
    if spec.integration.sft_rows and spec.sft is None:
        yield ("integration", "sft_rows"), "counts rows of a stage that the spec does not have"
    if len(set(spec.export.gguf)) < len(spec.export.gguf):
        yield ("export", "gguf"), "names a quantisation twice"
    for kind, path in spec.data.items():
        if not _there(Path.is_file, base, path):
            yield (kind, "data"), f"{path} is no file (looked in {base})"
    if not _there(Path.is_dir, base, spec.model) and not re.fullmatch(HUB_ID, spec.model):
        yield ("model",), f"{spec.model} is neither a folder nor a hub id (expected owner/name or owner/name@revision)"


def _there(is_kind: Callable[[Path], bool], base: Path, path: str) -> bool:
    try:
        return is_kind(base / Path(path).expanduser())
    except (OSError, RuntimeError):  # a name that no file can have, or ~somebody who is not known here
        return False
