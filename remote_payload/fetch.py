"""The base model from its hub, once: begun by bootstrap.sh in the background, waited for and completed by `prepare`.

    python -m remote_payload.fetch --root . --repo owner/name [--revision COMMIT]

A token, where the hub wants one, is in the environment (HF_TOKEN). What went wrong in the background is only in its
log: `prepare` asks again, and says it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from pathlib import Path

from remote_payload.contract import write_whole
from remote_payload.layout import Layout

LOCK = "model-fetch.lock"  # under the root; held by the fetch for as long as it lives
WHOLE = "model-fetch.whole"  # under the root; names the model that was fetched to its last file
# Safetensors only: a pickle is a program, and no code of the repository is wanted either.
MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "tokenizer.model"]


class Incomplete(Exception):
    """The hub gave less than a model; the message names what is missing."""


def fetch(layout: Layout, repo: str, revision: str | None) -> None:
    """Have the model whole in its folder; what is there already is not asked for again. Raises Incomplete."""
    whole, name = layout.root / WHOLE, f"{repo}@{revision or 'its newest revision'}"
    with open(layout.root / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if whole.exists() and whole.read_text() == told(name, layout.model):
            return
        if whole.exists():
            forget_damaged(whole.read_text(), layout.model)
        from huggingface_hub import snapshot_download

        print(f"fetching {name}", flush=True)
        # A hub that cannot be reached is no error to it as long as the folder holds anything.
        snapshot_download(repo, revision=revision, local_dir=layout.model, allow_patterns=MODEL_FILES)
        if missing := absent(layout.model):
            raise Incomplete(f"{name}: the hub did not bring {', '.join(missing[:3])} ({len(missing)} missing)")
        for file in layout.model.glob("*"):
            if file.is_file():  # a machine that loses its power keeps the marker only together with what it tells of
                with open(file, "rb+") as f:
                    os.fsync(f.fileno())
        write_whole(whole, told(name, layout.model))


def told(name: str, model: Path) -> str:
    """What the marker says: the model, and each of its files with its size in bytes."""
    files = sorted(file for file in model.glob("*") if file.is_file() and file.suffix in (".json", ".safetensors"))
    return "\n".join([name, *(f"{file.name} {file.stat().st_size}" for file in files)])


def forget_damaged(marker: str, model: Path) -> None:
    """What has another size than when it was whole goes: the hub's client asks for no file that is there."""
    for line in marker.splitlines()[1:]:
        name, _, size = line.rpartition(" ")
        file = model / Path(name).name
        if file.is_file() and file.stat().st_size != int(size):
            file.unlink()


def absent(model: Path) -> list[str]:
    """Files that this model consists of and that are not there; a file appears under its name when it is whole."""
    index = model / "model.safetensors.index.json"
    weights = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return sorted(name for name in {"config.json", *weights} if not (model / name).is_file())


def main() -> int:
    parser = argparse.ArgumentParser(prog="fetch")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--repo", required=True)
    parser.add_argument("--revision")
    args = parser.parse_args()
    fetch(Layout(args.root), args.repo, args.revision)
    return 0


if __name__ == "__main__":
    sys.exit(main())
