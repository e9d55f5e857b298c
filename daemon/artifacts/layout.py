"""Where a file of the manifest lies on this computer: `run/out/<x>` on the box is `<folder>/<x>` here."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from remote_payload.contract import OUT_DIR, RUN_DIR, ContractError, checked_path

OUT = PurePosixPath(RUN_DIR) / OUT_DIR

# Nothing that some program would unpickle or execute. A tokenizer.model is SentencePiece's, a protocol buffer.
SUFFIXES = frozenset({".gguf", ".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".md", ".model"})

# What TensorBoard's writer calls its files: time, host, process, number. They are read by that program alone.
TENSORBOARD = re.compile(r"tensorboard/[a-z]+/events\.out\.tfevents\.[A-Za-z0-9._-]+\.[0-9]+")

# Names that the model folder needs for itself.
OUR_OWN = frozenset(
    {"readme.md", "receipt.json", "manifest.json", "logs/daemon.txt", "sha256sums", "modelfile", "job.yaml"}
)


def local_name(path: str) -> PurePosixPath:
    """The manifest's `path` relative to the incoming folder.

    Raises ContractError for a path outside run/out, one that could leave the folder, and a kind of file we do not take.
    """
    pure = checked_path(path)
    if not pure.is_relative_to(OUT) or pure == OUT:
        raise ContractError(f"{path!r} is not under {OUT}")
    if pure.suffix.lower() not in SUFFIXES and not TENSORBOARD.fullmatch(str(pure.relative_to(OUT))):
        raise ContractError(f"{path!r} is not one of the accepted kinds: {' '.join(sorted(SUFFIXES))}")
    name = pure.relative_to(OUT)
    if OUR_OWN & {str(part).casefold() for part in (name, *name.parents)}:
        raise ContractError(f"{path!r} is a name that the model folder needs for itself")
    return name


def local_path(folder: Path, path: str) -> Path:
    """Where the manifest's `path` lies under `folder`. Raises ContractError as `local_name` does."""
    return folder / local_name(path)
