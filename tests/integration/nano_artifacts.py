"""Real artifact sets for the verifier, made by the payload on nano or SmolLM2, in .cache/ until its code changes.

`out` is what comes home; `others` are GGUFs of the same shape that are not that model: merged with the adapter turned
around, with half of it, with none of it (the base model), with that of another job, and with one that it could have
been before its last stage.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from daemon.sandbox.models import build_smollm2, nano_folder
from remote_payload.contract import Manifest, load

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tests" / "payload"))

from nano_box import NanoBox  # noqa: E402  # the payload's own tests make such boxes

# One process for all of them, because importing torch takes longer than converting the nano model.
CONVERT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from remote_payload import evaluate, gguf

torch.manual_seed(2)
CHANGES = {
    "box": lambda t: t,
    "opposite": lambda t: -t,
    "half": lambda t: t / 2,
    "base": lambda t: t * 0,
    "another job": lambda t: t.roll(1, 0),
    "earlier stage": lambda t: t + 0.3 * t.std() * torch.randn_like(t),
}

for name, root in zip(*[iter(sys.argv[1:])] * 2):
    path = f"{root}/run/sft/adapter/adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: (CHANGES[name](t) if "lora_B" in key else t).contiguous() for key, t in tensors.items()}, path)
    sys.argv[1:] = ["--root", root]  # the converter's imports look at it
    assert gguf.main() == 0
    if name == "box":
        assert evaluate.main() == 0
"""
OTHERS = ("opposite", "half", "base", "another job", "earlier stage")


@dataclass(frozen=True)
class NanoArtifacts:
    """`out` is laid out as an incoming folder; `base` is the folder of the base model."""

    model: str
    out: Path
    base: Path
    manifest: Manifest
    others: dict[str, Path]


def nano_artifacts(model: str = "nano") -> NanoArtifacts:
    """From the cache, or made in about half a minute; of SmolLM2 in some minutes."""
    python = Path(os.environ.get("HOMEPORT_BOX_PYTHON", REPOSITORY / ".venv-box/bin/python"))
    assert python.exists(), f"{python} is missing: the box image is made by `make test`"
    home = REPOSITORY / ".cache" / f"{model}-artifacts-{_fingerprint()}"
    home.parent.mkdir(exist_ok=True)
    with open(home.parent / f"{model}-artifacts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers need them at the same time
        if not home.exists():
            for outdated in home.parent.glob(f"{model}-artifacts-*"):
                shutil.rmtree(outdated)
            with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
                _make(Path(scratch) / "made", python, model)
                (Path(scratch) / "made").rename(home)
    box = home / "box"
    return NanoArtifacts(
        model=model,
        out=box / "run" / "out",
        base=box / "model",
        manifest=load(Manifest, (box / "run" / "manifest.json").read_bytes()),
        others={name: home / name / "run" / "out" / "forex-Q8_0.gguf" for name in OTHERS},
    )


def _make(home: Path, python: Path, model: str) -> None:
    home.mkdir()
    base = nano_folder()
    if model == "smollm2":
        base = home / "smollm2"
        build_smollm2(base, python)
    box = NanoBox.make(home / "box", python, ["Q8_0", "Q4_K_M"], base)
    pairs = ["box", str(box.layout.root)]
    for name in OTHERS:
        box.fork(home / name).set(gguf=["Q8_0"])
        pairs += [name, str(home / name)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([python, "-c", CONVERT, *pairs], env=environment, check=True, timeout=1800)
    box.succeed("manifest")


def _fingerprint() -> str:
    """Of everything that decides what the artifacts are."""
    sources = [
        *sorted((REPOSITORY / "remote_payload").rglob("*.py")),
        *sorted((REPOSITORY / "daemon" / "sandbox" / "models" / "nano").iterdir()),
        REPOSITORY / "tests" / "payload" / "nano_box.py",
        Path(__file__),
    ]
    digest = hashlib.sha256()
    for path in sources:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
