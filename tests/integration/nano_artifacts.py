"""Real artifact sets for the verifier, made by the payload on the nano model, kept under .cache/ until its code changes.

`out` is what comes home; `others` are GGUFs of the same shape that are not that model: merged with the adapter turned
around, with half of it, and with none of it (the base model).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from remote_payload.contract import Manifest, load

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "tests" / "payload"))

from nano_box import NanoBox  # noqa: E402  # the payload's own tests make such boxes

SCALE = """
from safetensors.torch import load_file, save_file
path = "run/sft/adapter/adapter_model.safetensors"
save_file({name: FACTOR * t if "lora_B" in name else t for name, t in load_file(path).items()}, path)
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
    for name, factor in OTHERS.items():
        other = box.fork(home / name)
        other.set(gguf=["Q8_0"])
        code = SCALE.replace("FACTOR", repr(factor))
        subprocess.run([python, "-c", code], cwd=other.layout.root, check=True, timeout=60)
        other.succeed("gguf")
    for stage in ("gguf", "evaluate", "manifest"):
        box.succeed(stage)


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
