"""On the person's own computer: the GGUF files that a rented machine makes at this moment, made a second time.

    python -m remote_payload.rebuild --root ROOT     one line of JSON (contract.ArtifactFile) for each file, once whole
    python -m remote_payload.rebuild --lacking       the packages that this interpreter would need for it, one a line

ROOT is laid out as the machine's: run/job.json, model, the adapter of the last training stage. What is made here is
only ever a guess at the machine's file: the download holds every chunk of it against the manifest. It gives way to
other work on this computer, and ends when whoever started it does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from remote_payload import contract, hashes
from remote_payload.contract import ArtifactFile, Exit, Role
from remote_payload.layout import Layout, final_adapter

NEEDED = ("torch", "transformers", "safetensors", "sentencepiece", "peft", "huggingface_hub", "gguf")


def lacking() -> list[str]:
    """Packages that are not there; none is imported."""
    return [name for name in NEEDED if find_spec(name) is None]


def rebuild(layout: Layout) -> None:
    """Write the job's files into run/out, telling standard output of each. Raises ScriptFailed.

    Only plain LoRA: PEFT would read settings of the adapter that came from the machine.
    """
    from remote_payload import gguf
    from remote_payload.merge import MergeFailed, why_not_plain

    job = layout.read_settled()
    with contextlib.redirect_stdout(sys.stderr):  # libraries print what they like
        if reason := why_not_plain(final_adapter(layout, job)):
            raise MergeFailed(reason)
        conversion = gguf.begin(layout, job)
        for file in gguf.written(conversion, layout, job):
            digest = hashes.digest(file.path, job.chunk_size)
            path = file.path.relative_to(layout.root).as_posix()
            made = ArtifactFile(path, Role.GGUF, digest.size, digest.sha256, digest.chunks, file.quant.name)
            print(contract.dump(made), file=sys.__stdout__, flush=True)


def end_with_parent() -> None:
    """Nobody writes to standard input; that it ends means that whoever started this is gone."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock an ending interpreter would wait for
            pass
        os._exit(Exit.STOPPED)

    threading.Thread(target=wait, daemon=True).start()


def give_way() -> None:
    """The work of the person at this computer comes first; where memory runs out, this is the first to go."""
    os.nice(10)
    with contextlib.suppress(OSError):  # a kernel that does not let us volunteer
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--root", type=Path)
    what.add_argument("--lacking", action="store_true")
    args = parser.parse_args()
    if args.lacking:
        for name in lacking():
            print(name)
        return Exit.OK
    end_with_parent()
    give_way()
    rebuild(Layout(args.root.resolve()))
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
