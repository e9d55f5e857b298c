"""What the machine says while it works: `prepared.json`, `status.json`, checkpoints and each stage's own files."""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_payload.contract.names import CONTRACT, Phase, Stage


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
