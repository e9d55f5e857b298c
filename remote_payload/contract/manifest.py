"""What the machine made: `manifest.json`."""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_payload.contract.names import CONTRACT, Role, Subject


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
