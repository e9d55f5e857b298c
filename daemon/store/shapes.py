"""The shapes of what a person or a program is told: plain dictionaries, ready for JSON.

Enums upper case, times ISO-8601 UTC with a Z, money decimal strings in `currency`. Changes only ever add keys; a
reading names its shape and version in `schema`.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any, TypedDict

CURRENCY = "USD"


def iso(ms: int | None) -> str | None:
    """UTC milliseconds as ISO-8601 with a Z. Without datetime, whose import costs more than a screen."""
    return None if ms is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms // 1000))


class Activity(StrEnum):
    """What is going on beside the state."""

    SEARCHING = "SEARCHING"  # no machine yet, none asked for
    RENTING = "RENTING"  # a create is on its way
    UNANSWERED = "UNANSWERED"  # the reply of a create was lost: it is looked for, never sent again
    BOOTING = "BOOTING"
    SETTING_UP = "SETTING_UP"
    STARTING = "STARTING"
    OUT_OF_CONTACT = "OUT_OF_CONTACT"
    STOPPED = "STOPPED"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    RETURNING = "RETURNING"
    DESTROYING = "DESTROYING"  # requested, not confirmed: may bill


class Whereabouts(StrEnum):
    HERE = "HERE"  # on this computer's disk, verified
    BOX = "BOX"  # on the rented machine only, or not proven here yet
    NOWHERE = "NOWHERE"


class HoldView(TypedDict):
    reason: str
    meaning: str
    detail: str
    since: str
    by: str
    advice: str
    commands: list[str]


class Progress(TypedDict):
    stage: str  # the job's state; of what moves beside it, UPLOAD or MIRROR
    done: int
    total: int
    unit: str  # STEPS or BYTES
    per_s: float | None  # of bytes: since the transfer began or went on
    resent: int  # of bytes: asked for more than once


class CoverageView(TypedDict):
    """How far the rows of one stage get. `kept` and `truncated` are null until the box has tokenized them."""

    stage: str
    read: int
    kept: int | None
    trained: int  # at least once
    truncated: int | None
    steps: int
    warning: str | None  # fewer are trained than were read, with the numbers


class LeaseView(TypedDict):
    lease: int
    instance: int
    job: str | None
    state: str
    status: str | None  # the market's word, last trusted listing
    status_message: str
    gpu: str
    price_per_hour: str  # running, disk included
    storage_per_hour: str  # stopped
    rate: str  # what it bills now, as far as we know
    cost: str
    currency: str
    last_seen: str | None
    contract_ends: str | None
    gpu_util: float | None
    destroy_requested: str | None  # since when; null when none is open


class Safety(TypedDict):
    where: str
    safe: bool
    text: str
    path: str | None


class LossDeadline(TypedDict):
    at: str
    cause: str  # CONTRACT_ENDS or CREDIT_ENDS


class JobView(TypedDict):
    id: str
    name: str
    state: str
    activity: str | None
    hold: HoldView | None
    wish: str | None
    attempt: int
    model: str
    stages: list[str]  # those the spec asks for, in order
    created_at: str
    state_since: str
    finished_at: str | None
    progress: Progress | None
    moving: Progress | None  # to or from the machine, beside the model's way home: data there, checkpoints here
    loss: float | None
    lr: float | None
    tok_s: float | None
    eta_s: int | None  # until the end of the stage that runs
    coverage: list[CoverageView]  # empty until the box has read the rows
    step_s: float | None  # of the last steps, on average
    expected_s: dict[str, float]  # what the spec expects of: step, sft, dpo, gguf
    gpu_busy: float | None  # percent, by the machine's own last report
    gpu_memory: float | None  # percent of the fullest card's
    placement: str | None  # what the machine decided, with its reason; None where nothing was to decide
    checkpoint_step: int | None
    box_seen_at: str | None
    out_of_contact_since: str | None
    lease: LeaseView | None
    cost: str
    cost_limit: str | None
    currency: str
    model_dir: str | None  # the model's final folder, from VERIFIED on
    verification: str  # FULL or HASH, as the spec asks
    safety: Safety
    loss_deadline: LossDeadline | None


class MoneyStrip(TypedDict):
    """The line on every screen. `as_of` is the last trusted listing of the market, `problem` why none came since."""

    machines: int
    unsure: int  # rentals without an answer and written-off machines: each may bill, none is in the other figures
    rate: str  # per hour, all of them
    cost: str  # so far, of the machines that may bill now
    credit: str | None
    hours_left: float | None
    currency: str
    as_of: str | None
    problem: str | None
    kept_awake: bool  # this computer, while a model comes home; said by the daemon, so true only while it runs


UNSURE = ("UNANSWERED", "RENTING", "WRITTEN_OFF")  # kinds of Attention: what may bill and is in no figure


class Attention(TypedDict):
    # HELD, MODEL_MISSING, OUT_OF_CONTACT, UNANSWERED, RENTING, NOT_CONFIRMED, ORPHAN, REAPPEARED, LOST, WRITTEN_OFF,
    # DISK_FULL, EXPORTED, UNLISTED
    kind: str
    urgent: bool  # counts for --check; the others are being dealt with
    job: str | None
    instance: int | None
    text: str
    hint: str


class Jobs(TypedDict):
    schema: str
    jobs: list[JobView]
    money: MoneyStrip
    attention: list[Attention]


class Move(TypedDict):
    state: str
    at: str


class Event(TypedDict):
    id: int  # the cursor
    at: str
    kind: str
    by: str
    job: str | None
    lease: int | None
    body: dict[str, Any]


class JobPage(TypedDict):
    schema: str
    job: JobView
    moves: list[Move]  # the states of the job, in order
    recent: list[Event]
    losses: list[float]  # of the stage that reported last, thinned out
    scores: list[str]  # how the model stands against others on the held-out rows, once it is made
    delivery: list[str]  # where there was a choice: the way home and why, then what was rebuilt here
    money: MoneyStrip


class Events(TypedDict):
    schema: str
    job: str
    events: list[Event]


class Metric(TypedDict):
    cursor: int
    attempt: int
    stage: str
    step: int
    total: int | None
    at: str
    loss: float | None
    lr: float | None
    tokens: int | None
    tok_s: float | None
    body: dict[str, Any]


class Metrics(TypedDict):
    schema: str
    job: str
    metrics: list[Metric]


class Log(TypedDict):
    schema: str
    job: str
    text: str
    offset: int  # where the next page begins, bytes


class Leases(TypedDict):
    schema: str
    leases: list[LeaseView]
    money: MoneyStrip
    attention: list[Attention]
