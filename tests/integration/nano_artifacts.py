"""Real artifact sets for the verifier, made by the payload on the nano model, in .cache/ until its code changes.

`out` is what comes home; `others` are GGUFs of the same shape that are not that model: merged with the adapter turned
around, with half of it, and with none of it (the base model).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from remote_payload.contract import Manifest, load

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tests" / "payload"))

from nano_box import NanoBox  # noqa: E402  # the payload's own tests make such boxes

# One process for all of them, because importing torch takes longer than converting the nano model.
CONVERT = """
import sys
from safetensors.torch import load_file, save_file
from remote_payload import evaluate, gguf

def convert(root, factor):
    path = f"{root}/run/sft/adapter/adapter_model.safetensors"
    save_file({name: factor * t if "lora_B" in name else t for name, t in load_file(path).items()}, path)
    sys.argv = ["gguf", "--root", root]
    assert gguf.main() == 0

box, *pairs = sys.argv[1:]
for root, factor in zip([box, *pairs[::2]], [1.0, *map(float, pairs[1::2])]):
    convert(root, factor)
sys.argv = ["evaluate", "--root", box]
assert evaluate.main() == 0
"""
OTHERS = {"opposite": -1.0, "half": 0.5, "base": 0.0}  # factor on the adapter


@dataclass(frozen=True)
class NanoArtifacts:
    """`out` is laid out as an incoming folder; `base` is the folder of the base model."""

    out: Path
    base: Path
    manifest: Manifest
    others: dict[str, Path]


def nano_artifacts() -> NanoArtifacts:
    """From the cache, or made in about half a minute."""
    python = Path(os.environ.get("HOMEPORT_BOX_PYTHON", REPOSITORY / ".venv-box/bin/python"))
    assert python.exists(), f"{python} is missing: the box image is made by `make test`"
    home = REPOSITORY / ".cache" / f"nano-artifacts-{_fingerprint()}"
    if not home.exists():
        home.parent.mkdir(exist_ok=True)
        for outdated in home.parent.glob("nano-artifacts-*"):
            shutil.rmtree(outdated)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _make(Path(scratch) / "made", python)
            (Path(scratch) / "made").rename(home)
    box = home / "box"
    return NanoArtifacts(
        out=box / "run" / "out",
        base=box / "model",
        manifest=load(Manifest, (box / "run" / "manifest.json").read_bytes()),
        others={name: home / name / "run" / "out" / "forex-Q8_0.gguf" for name in OTHERS},
    )


def _make(home: Path, python: Path) -> None:
    home.mkdir()
    box = NanoBox.make(home / "box", python, ["Q8_0", "Q4_K_M"])
    pairs = []
    for name, factor in OTHERS.items():
        box.fork(home / name).set(gguf=["Q8_0"])
        pairs += [str(home / name), str(factor)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([python, "-c", CONVERT, box.layout.root, *pairs], env=environment, check=True, timeout=240)
    box.succeed("manifest")


def _fingerprint() -> str:
    """Of everything that decides what the artifacts are."""
    sources = [
        *sorted((REPOSITORY / "remote_payload").glob("*.py")),
        *sorted((REPOSITORY / "daemon" / "sandbox" / "models" / "nano").iterdir()),
        REPOSITORY / "tests" / "payload" / "nano_box.py",
        Path(__file__),
    ]
    digest = hashlib.sha256()
    for path in sources:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
