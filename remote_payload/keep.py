"""Keep a checkpoint while it is on its way home: training deletes its old ones sooner than a slow line brings one.

`python -m remote_payload.keep CHECKPOINT NONCE` links the files of run/<stage>/checkpoint-N into
run/kept/NONCE/checkpoint-N, where neither training nor its resume looks. A sealed file is never written again, so the
links take no room before training deletes its own. One is kept at a time: it goes when another one is to be kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from remote_payload import contract
from remote_payload.contract import CHECKPOINT_MANIFEST, Checkpoint
from remote_payload.layout import Layout


def keep(layout: Layout, path: str, nonce: str) -> None:
    """Once more for one that is kept changes nothing. Raises OSError when it is deleted, or the disk has no links."""
    source = layout.file(path)
    kept = layout.kept / contract.checked_path(nonce).name / source.name
    if kept.exists() and not _is_another(source / CHECKPOINT_MANIFEST, kept / CHECKPOINT_MANIFEST):
        return
    shutil.rmtree(layout.kept, ignore_errors=True)
    begun = kept.with_name(f"{kept.name}.new")
    shutil.copytree(source, begun, copy_function=os.link)
    for file in contract.load(Checkpoint, (begun / CHECKPOINT_MANIFEST).read_bytes()).files:
        (begun / contract.checked_path(file.path)).stat()  # training may have deleted it just before it was linked
    begun.rename(kept)


def _is_another(made: Path, kept: Path) -> bool:
    """The checkpoint was made anew under its number: the kept one was damaged, and set aside by its resume."""
    return made.exists() and not made.samefile(kept)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="keep")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("checkpoint")
    parser.add_argument("nonce")
    args = parser.parse_args(argv)
    keep(Layout(args.root), args.checkpoint, args.nonce)
    return contract.Exit.OK


if __name__ == "__main__":
    sys.exit(main())
