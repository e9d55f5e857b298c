"""Where files lie on the box, their limits, and the words that the files use."""

from __future__ import annotations

from enum import IntEnum, StrEnum

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
CALLED_FILE = "called"  # run/called: written by every command from home, with the seconds of silence that it allows
LOG_FILE = "log.txt"  # run/log.txt: everything the stages printed
MANIFEST_FILE = "manifest.json"  # run/manifest.json: the artifact set, written last
KEPT_DIR = "kept"  # run/kept/<nonce>/checkpoint-N: the one that is being fetched, whatever training deletes
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
LARGEST_FLOAT = 1e300
LARGEST_INTEGER = 2**63 - 1


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
    RANK_LOST = 72  # another rank of the same step is gone or does not answer
    STOPPED = 75
    INTERNAL = 80
