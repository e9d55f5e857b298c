"""The lifecycle of a job, as data.

    QUEUED -> PROVISIONED -> SFT -> DPO -> GGUF -> DOWNLOADED -> VERIFIED -> DESTROYED

`EDGES` is the one table: the state machine executes it (machine.py), the database trigger that rejects any other edge
is generated from it (store/triggers.py), docs/lifecycle.md is printed from it, and the crash tests walk it. Adding a
state means adding rows here.

What is in flight (renting, downloading, a destroy not yet confirmed) is not a state: it is an operation. HELD is not a
state either: a hold is orthogonal and possible in every state that is not terminal (holds.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "QUEUED"
    PROVISIONED = "PROVISIONED"
    SFT = "SFT"
    DPO = "DPO"
    GGUF = "GGUF"
    DOWNLOADED = "DOWNLOADED"
    VERIFIED = "VERIFIED"
    DESTROYED = "DESTROYED"
    ABANDONED = "ABANDONED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


MAIN_LINE = (
    JobState.QUEUED,
    JobState.PROVISIONED,
    JobState.SFT,
    JobState.DPO,
    JobState.GGUF,
    JobState.DOWNLOADED,
    JobState.VERIFIED,
    JobState.DESTROYED,
)
TERMINAL = frozenset({JobState.DESTROYED, JobState.ABANDONED, JobState.FAILED, JobState.CANCELLED})
STAGES = (JobState.SFT, JobState.DPO, JobState.GGUF)

FACTS: dict[JobState, str] = {
    JobState.QUEUED: "the spec is stored; no machine has passed preflight yet",
    JobState.PROVISIONED: "machine running, host key pinned, preflight and prepare passed, payload and data there",
    JobState.SFT: "supervised fine-tuning was started on the box under a nonce",
    JobState.DPO: "preference tuning was started on the box under a nonce",
    JobState.GGUF: "merge and conversion were started on the box under a nonce",
    JobState.DOWNLOADED: "every file of the manifest is on this disk, synced, size and sha256 right",
    JobState.VERIFIED: "re-read and proven whole; folder in its final place; receipt stored",
    JobState.DESTROYED: "the market confirmed that every machine of the job is gone",
    JobState.ABANDONED: "given up by the person, who typed the instance id; confirmed gone",
    JobState.FAILED: "nothing rented, nothing left to save",
    JobState.CANCELLED: "ended by wish; nothing rented, nothing left to save",
}


class Trigger(StrEnum):
    PROVISION = "provision"
    START_SFT = "start_sft"
    START_DPO = "start_dpo"
    START_GGUF = "start_gguf"
    DOWNLOAD = "download"
    VERIFY = "verify"
    CONFIRM_DESTROYED = "confirm_destroyed"
    ARTIFACT_LOST = "artifact_lost"
    RETRY = "retry"
    ABANDON = "abandon"
    FAIL = "fail"
    CANCEL = "cancel"


class Guard(StrEnum):
    """A condition on the snapshot that the machine checks before an edge is taken (machine.py)."""

    HAS_SFT = "the spec has sft"
    HAS_DPO = "the spec has dpo"
    NO_SFT = "the spec has no sft"
    NO_DPO = "the spec has no dpo"
    NOTHING_RENTED = "no lease is LIVE or LOST, no create or destroy unresolved"
    RECEIPT = "a receipt of the current artifact set is stored"


@dataclass(frozen=True)
class Edge:
    source: JobState
    trigger: Trigger
    target: JobState
    guards: tuple[Guard, ...] = ()
    backward: bool = False


S, T, G = JobState, Trigger, Guard
_ACTIVE = tuple(s for s in MAIN_LINE if s is not S.DESTROYED)
_RETRYABLE = (S.PROVISIONED, S.SFT, S.DPO, S.GGUF, S.DOWNLOADED, S.VERIFIED)

EDGES: tuple[Edge, ...] = (
    Edge(S.QUEUED, T.PROVISION, S.PROVISIONED),
    Edge(S.PROVISIONED, T.START_SFT, S.SFT, (G.HAS_SFT,)),
    Edge(S.PROVISIONED, T.START_DPO, S.DPO, (G.NO_SFT, G.HAS_DPO)),
    Edge(S.SFT, T.START_DPO, S.DPO, (G.HAS_DPO,)),
    Edge(S.SFT, T.START_GGUF, S.GGUF, (G.NO_DPO,)),
    Edge(S.DPO, T.START_GGUF, S.GGUF),
    Edge(S.GGUF, T.DOWNLOAD, S.DOWNLOADED),
    Edge(S.DOWNLOADED, T.VERIFY, S.VERIFIED, (G.RECEIPT,)),
    Edge(S.VERIFIED, T.CONFIRM_DESTROYED, S.DESTROYED, (G.RECEIPT, G.NOTHING_RENTED)),
    # The permit's re-check failed: the model was deleted or touched here, so it is fetched again.
    Edge(S.VERIFIED, T.ARTIFACT_LOST, S.GGUF, (), backward=True),
    # `jobctl retry [--from STAGE]`: a person's own word, a new attempt.
    *(Edge(s, T.RETRY, S.QUEUED, (), backward=True) for s in _RETRYABLE),
    *(Edge(s, T.ABANDON, S.ABANDONED, (G.NOTHING_RENTED,)) for s in _ACTIVE),
    *(Edge(s, T.FAIL, S.FAILED, (G.NOTHING_RENTED,)) for s in _ACTIVE),
    *(Edge(s, T.CANCEL, S.CANCELLED, (G.NOTHING_RENTED,)) for s in _ACTIVE),
)
