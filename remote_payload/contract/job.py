"""What the daemon asks of a machine: `job.json`, and what preflight is to find."""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_payload.contract.names import CHUNK_SIZE, CONTRACT, Stage


@dataclass(frozen=True)
class Reporter:
    """Where a training can be told beside events.jsonl. `key` is the environment variable that opens it."""

    requirement: str
    key: str | None = None


REPORTERS = {
    "tensorboard": Reporter("tensorboard==2.21.0"),
    "wandb": Reporter("wandb==0.31.0", key="WANDB_API_KEY"),
}


@dataclass(frozen=True)
class ModelSource:
    """The base model: a folder already under MODEL_DIR, or a hub repository the box fetches into it."""

    name: str  # what the person wrote, for reports
    repo: str | None = None  # hub id; None when the folder was uploaded
    revision: str | None = None


@dataclass(frozen=True)
class Needs:
    """What `preflight --needs` holds a machine against, in bytes; 0: nothing is asked."""

    disk: int = 0  # that the job will write under the root
    memory: int = 0
    model: ModelSource | None = None
    contract: int = CONTRACT


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
