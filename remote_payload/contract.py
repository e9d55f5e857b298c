"""What the daemon and the box say to each other: file names, shapes, exit codes.

The one module both sides import, so it knows only the standard library and holds no behaviour beyond reading and
writing these shapes. Every file carries ``contract``; a newer daemon reads an older box, never the reverse.
Everything that comes *from* a box is untrusted: `load` checks types, caps sizes and refuses paths that leave the root.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

CONTRACT = 1

# Layout under the image's root; one job lives on one box.
PAYLOAD_DIR = "payload"  # the uploaded package: payload/remote_payload/*.py
DATA_DIR = "data"  # data/<sha256>.jsonl, canonical rows
MODEL_DIR = "model"  # the base model, uploaded or fetched from the hub
RUN_DIR = "run"  # everything below belongs to one attempt of one job
CONVERTER_DIR = "converter"  # llama.cpp's converter, when the image does not bring it

JOB_FILE = "job.json"  # run/job.json: written by the daemon, read by every script
PREPARED_FILE = "prepared.json"  # run/prepared.json: what `prepare` read and concluded
STATUS_FILE = "status.json"  # run/status.json: the runner's heartbeat, replaced whole
EVENTS_FILE = "events.jsonl"  # run/events.jsonl: append-only progress, read by byte offset
CALLED_FILE = "called"  # run/called: touched by every command from home; away.py looks at its time
LOG_FILE = "log.txt"  # run/log.txt: everything the stages printed
MANIFEST_FILE = "manifest.json"  # run/manifest.json: the artifact set, written last
STAGES_DIR = "stages"  # run/stages/<nonce>/{started,done,failed}.json
STARTED_FILE = "started.json"
DONE_FILE = "done.json"
FAILED_FILE = "failed.json"
OUT_DIR = "out"  # run/out/: the files the manifest names
CHECKPOINT_MANIFEST = "checkpoint.json"  # inside checkpoint-N/, written after every other file of it

CHUNK_SIZE = 8 << 20  # bytes
MAX_FILES = 4096
MAX_FILE_SIZE = 1 << 42
MAX_JSON_BYTES = 64 << 20


class Stage(StrEnum):
    SFT = "SFT"
    DPO = "DPO"
    GGUF = "GGUF"


class Phase(StrEnum):
    """What the runner is doing now."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    DONE = "DONE"  # every stage of job.json has its done.json
    FAILED = "FAILED"  # a stage has its failed.json; later stages were not started
    STOPPED = "STOPPED"  # asked to stop; the newest checkpoint is whole


class Role(StrEnum):
    """What a file of the manifest is for."""

    GGUF = "gguf"
    ADAPTER = "adapter"
    TOKENIZER = "tokenizer"
    BASE = "base"  # the base model's config and tokenizer, for the identity check
    REFERENCE = "reference"
    METRICS = "metrics"
    LOG = "log"
    REPORT = "report"


class Subject(StrEnum):
    """Which model a score is of."""

    NEW = "new"  # the one this job trained
    BASE = "base"
    COMPARED = "compared"  # the one that eval.compare_to names


@dataclass(frozen=True)
class Reporter:
    """Where a training can be told beside events.jsonl. `key` is the environment variable that opens it."""

    requirement: str
    key: str | None = None


REPORTERS = {
    "tensorboard": Reporter("tensorboard==2.21.0"),
    "wandb": Reporter("wandb==0.31.0", key="WANDB_API_KEY"),
}


class Exit(IntEnum):
    """Exit codes of every script."""

    OK = 0
    BAD_CONFIG = 10
    BAD_DATA = 20
    INTEGRATION = 21
    PREFLIGHT = 30
    PLACEMENT = 31
    DIVERGED = 40
    NOT_LEARNING = 41
    DPO_GATE = 42
    CHECKPOINT_MISMATCH = 50
    MERGE_GATE = 60
    GGUF_GATE = 61
    OUT_OF_MEMORY = 70
    OUT_OF_DISK = 71
    STOPPED = 75
    LIMIT = 76
    INTERNAL = 80


@dataclass(frozen=True)
class ModelSource:
    """The base model: a folder already under MODEL_DIR, or a hub repository the box fetches into it."""

    name: str  # what the person wrote, for reports
    repo: str | None = None  # hub id; None when the folder was uploaded
    revision: str | None = None


@dataclass(frozen=True)
class DataFile:
    """One canonical JSONL file under the root; rows and sha256 are what the workstation counted."""

    path: str
    sha256: str
    rows: int
    original_sha256: str = ""


@dataclass(frozen=True)
class AdapterSource:
    """A PEFT folder under the root, uploaded; `sha256` is of its weights."""

    path: str
    sha256: str
    name: str  # what the person wrote, for reports


@dataclass(frozen=True)
class Lora:
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str = "all-linear"


@dataclass(frozen=True)
class StageTraining:
    """Settings of SFT or DPO; `beta` is read by DPO alone."""

    epochs: float = 1.0
    lr: float = 2e-4
    beta: float = 0.1
    max_steps: int | None = None


@dataclass(frozen=True)
class StagePlan:
    """One stage to run. `fresh`: set aside what an earlier nonce left instead of resuming from its checkpoints."""

    stage: Stage
    nonce: str
    fresh: bool = False


@dataclass(frozen=True)
class Integration:
    """The line the log must show before any stage starts: '<tag>: <n> SFT + <m> DPO samples from YOUR data'."""

    tag: str
    sft_rows: int
    dpo_rows: int

    def line(self, sft_rows: int, dpo_rows: int) -> str:
        return f"{self.tag}: {sft_rows} SFT + {dpo_rows} DPO samples from YOUR data"


@dataclass(frozen=True)
class JobFile:
    """run/job.json."""

    job: str
    attempt: int
    name: str  # file stem of the model files
    model: ModelSource
    stages: list[StagePlan]
    integration: Integration
    lora: Lora
    gguf: list[str]  # quantisations, e.g. ["Q8_0", "Q4_K_M"]
    start_from: AdapterSource | None = None  # the first training stage goes on with it
    compare_to: AdapterSource | None = None  # scored on the evaluation rows beside base and result
    sft_data: DataFile | None = None
    dpo_data: DataFile | None = None
    eval_data: DataFile | None = None
    sft: StageTraining | None = None
    dpo: StageTraining | None = None
    batch_size: int = 32  # global
    micro_batch_size: int | None = None  # sequences per forward on one device; None: the trainer chooses
    placement: str = "auto_map"
    speed: str = "fast"  # "plain": as TRL alone would train it
    max_length: int | None = None  # tokens; None: `prepare` derives it from the rows
    checkpoint_every: int = 100
    checkpoint_keep: int = 3
    seed: int = 42
    reasoning: str = "auto"  # keep, empty or none; auto: `prepare` decides where the rows are clear
    gates: dict[str, float] = field(default_factory=dict)  # limits other than those of gates.py, by its names
    choices: list[str] = field(default_factory=list)  # the words of which each held-out answer says one
    report_to: str | None = None  # one of REPORTERS
    away_limit_s: float | None = None  # finished or failed and nobody called for so long: the box stops itself
    notify_url: str | None = None
    chunk_size: int = CHUNK_SIZE
    contract: int = CONTRACT


@dataclass(frozen=True)
class Prepared:
    """run/prepared.json: the counts really read, the steps they give, and every objection."""

    ok: bool
    line: str
    sft_rows: int
    dpo_rows: int
    eval_rows: int = 0
    kept: dict[str, int] = field(default_factory=dict)  # rows per stage after preparation
    truncated: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)  # optimizer steps per stage
    tokens: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)  # stage -> {"p50": tokens of a row, ...}
    max_length: int | None = None  # what the stages train with, as the job says or as derived
    reasoning: str | None = None  # likewise
    problems: list[str] = field(default_factory=list)
    exit_code: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    contract: int = CONTRACT


@dataclass(frozen=True)
class Status:
    """run/status.json."""

    job: str
    attempt: int
    phase: Phase
    stage: Stage | None
    nonce: str | None
    updated_at: float  # unix seconds of the box's clock
    boot_id: str
    pid: int
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    lr: float | None = None
    tokens: int = 0
    tok_s: float | None = None
    checkpoint: str | None = None  # newest whole checkpoint, relative to the root
    checkpoint_step: int = 0
    detail: str = ""
    gpu_util: float | None = None  # percent
    placement: str = ""  # which one, and why, where the machine had a say
    gpu_memory: float | None = None  # percent, of the fullest card
    eta_s: float | None = None  # to the end of the stage's steps, when the last one was told
    contract: int = CONTRACT


@dataclass(frozen=True)
class Output:
    """One file, path relative to the root, with what it must hash to."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """checkpoint-N/checkpoint.json: every other file of that folder, paths relative to it, written after them all."""

    stage: Stage
    step: int
    fingerprint: str  # sha256 of everything that must be equal on resume: settings, data, base model, parent adapter
    files: list[Output]
    parts: dict[str, str] = field(default_factory=dict)  # what the fingerprint is made of, for a refusal to name
    contract: int = CONTRACT


@dataclass(frozen=True)
class Started:
    stage: Stage
    nonce: str
    attempt: int
    pid: int
    pid_start: int  # field 22 of /proc/PID/stat: a PID alone proves nothing
    boot_id: str
    at: float
    contract: int = CONTRACT


@dataclass(frozen=True)
class Done:
    """run/stages/<nonce>/done.json: the only proof that a stage is finished."""

    stage: Stage
    nonce: str
    attempt: int
    outputs: list[Output]
    seconds: float
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    contract: int = CONTRACT


@dataclass(frozen=True)
class Failed:
    """run/stages/<nonce>/failed.json."""

    stage: Stage
    nonce: str
    attempt: int
    exit_code: int
    reason: str
    detail: str = ""
    checkpoint: str | None = None
    contract: int = CONTRACT


@dataclass(frozen=True)
class ArtifactFile:
    """A file of the model: path relative to the root, chunk digests of `chunk_size` bytes each, the last shorter."""

    path: str
    role: Role
    size: int
    sha256: str
    chunks: list[str]
    quant: str | None = None  # of a GGUF


@dataclass(frozen=True)
class Quality:
    """The box's own score of one GGUF against the merged model: nats, shares, counts."""

    quant: str
    kl_mean: float
    kl_p95: float
    kl_max: float
    top1: float
    positions: int
    base_kl_mean: float  # the base model against the merged one, same positions


@dataclass(frozen=True)
class Gain:
    """How much better the new model is than another on the same rows: the mean and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """One model on the held-out rows. The gains are None for the new model itself, which the others are held against.

    `nll` in nats a token, its gain positive where the new model is the more certain; `right` is the share of the
    `choice_rows` whose word the model finds likeliest, None where no row holds one of the job's choices.
    """

    subject: Subject
    rows: int
    nll: float
    nll_gain: Gain | None = None
    choice_rows: int = 0
    right: float | None = None
    right_gain: Gain | None = None


@dataclass(frozen=True)
class Manifest:
    """run/manifest.json: the whole artifact set, written after everything in it was re-read and hashed."""

    job: str
    attempt: int
    nonce: str  # of the GGUF stage
    created_at: float
    chunk_size: int
    files: list[ArtifactFile]
    parents: dict[str, str] = field(default_factory=dict)  # stage -> sha256 of the adapter it produced
    quality: list[Quality] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    tools: dict[str, str] = field(default_factory=dict)
    contract: int = CONTRACT


class ContractError(ValueError):
    """A file of the contract is malformed, too large, of a newer contract, or names a path outside its root."""


_T = TypeVar("_T")


def dump(value: Any) -> str:
    """`value` (a dataclass of this module) as one line of JSON."""
    return json.dumps(dataclasses.asdict(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def load(kind: type[_T], text: str | bytes) -> _T:
    """Parse `text` as `kind`. Unknown keys are ignored, since a newer box may add some; else ContractError."""
    if len(text) > MAX_JSON_BYTES:
        raise ContractError(f"{kind.__name__}: {len(text)} bytes is over the limit of {MAX_JSON_BYTES}")
    try:
        raw = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{kind.__name__}: not JSON ({error})") from error
    value: _T = _build(kind, raw, kind.__name__)
    spoken = getattr(value, "contract", CONTRACT)
    if spoken > CONTRACT:
        raise ContractError(f"{kind.__name__}: contract {spoken} is newer than {CONTRACT}; update homeport")
    return value


def _no_constant(name: str) -> float:
    """JSON has no NaN and no infinity, though Python's parser takes them; a limit compared with NaN limits nothing."""
    raise ValueError(f"{name} is not a number")


def _build(kind: Any, raw: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if raw is None:
            return None
        (inner,) = [a for a in typing.get_args(kind) if a is not type(None)]
        return _build(inner, raw, where)
    if origin is list:
        if not isinstance(raw, list) or len(raw) > MAX_FILE_SIZE // CHUNK_SIZE:
            raise ContractError(f"{where}: expected a list")
        (inner,) = typing.get_args(kind)
        return [_build(inner, item, f"{where}[{i}]") for i, item in enumerate(raw)]
    if origin is dict:
        if not isinstance(raw, dict) or len(raw) > MAX_FILES:
            raise ContractError(f"{where}: expected an object")
        _, inner = typing.get_args(kind)
        return {str(k): _build(inner, v, f"{where}.{k}") for k, v in raw.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, dict):
            raise ContractError(f"{where}: expected an object")
        hints = typing.get_type_hints(kind)
        values = {}
        for f in dataclasses.fields(kind):
            if f.name in raw:
                values[f.name] = _build(hints[f.name], raw[f.name], f"{where}.{f.name}")
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ContractError(f"{where}.{f.name}: missing")
        return typing.cast(typing.Callable[..., Any], kind)(**values)
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    if isinstance(kind, type) and issubclass(kind, StrEnum | IntEnum):
        try:
            return kind(raw)
        except ValueError as error:
            raise ContractError(f"{where}: {raw!r} is not one of {[str(m) for m in kind]}") from error
    if isinstance(kind, type) and type(raw) is kind:
        return raw
    raise ContractError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {type(raw).__name__}")


def checked_path(path: str) -> PurePosixPath:
    """`path` as a relative POSIX path that stays inside its root; raises ContractError otherwise.

    Refuses absolute paths, '..', backslashes, drive letters, control characters and components over 255 bytes.
    """
    pure = PurePosixPath(path)
    bad = (
        not path
        or pure.is_absolute()
        or any(c in path for c in '\\:*?"<>|')
        or any(ord(c) < 32 or ord(c) == 127 for c in path)
        or any(part in ("..", ".") or len(part.encode()) > 255 for part in path.split("/"))
        or len(path) > 1024
    )
    if bad:
        raise ContractError(f"path {path!r} is not a plain relative path")
    return pure


def write_whole(path: Path, text: str) -> None:
    """Write `path` so that it appears whole or not at all, and survives a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(beside, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    beside.replace(path)
    if os.name == "posix":
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
