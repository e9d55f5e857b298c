"""Records a real run for the replay image: python -m daemon.sandbox.recording --root BOXROOT --python PYTHON

BOXROOT is the image's root on a box whose job is done, PYTHON the interpreter that ran it. The recording holds what the
stages left behind and what the job was made from; it is made by this command and never edited.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from remote_payload import contract
from remote_payload.contract import JobFile

RECORDING = Path(__file__).with_name("recordings") / "nano.tar.gz"
MAX_BYTES = 5_000_000  # it lies in the repository

VERSIONS = """
import json, re, sys
from importlib.metadata import version
names = re.findall(r"^([\\w.-]+)==", open(sys.argv[1]).read(), re.M)
print(json.dumps({name: version(name) for name in (*names, "torch")}))
"""


def record(root: Path, python: str, to: Path) -> None:
    """Write the recording of the run that `python` finished under `root`. Raises ValueError when it is too large."""
    run = root / contract.RUN_DIR
    payload = root / contract.PAYLOAD_DIR
    requirements = payload / "remote_payload" / "requirements.txt"
    job = contract.load(JobFile, (run / contract.JOB_FILE).read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder)
        for name in (contract.JOB_FILE, contract.PREPARED_FILE, contract.EVENTS_FILE):
            shutil.copyfile(run / name, tape / name)
        shutil.copytree(
            root / contract.DATA_DIR, tape / contract.DATA_DIR
        )  # with it, the recorded job can be run again
        (tape / "preflight.json").write_text(_ask(root, payload, python, "-m", "remote_payload.preflight"))
        (tape / "versions.json").write_text(_ask(root, payload, python, "-c", VERSIONS, str(requirements)))
        for plan in job.stages:
            _record_stage(run / plan.stage.lower(), tape / plan.stage.lower())
        for quant in job.gguf:
            shutil.copyfile(run / contract.OUT_DIR / f"{job.name}-{quant}.gguf", tape / "gguf" / f"{quant}.gguf")
        shutil.copyfile(run / contract.OUT_DIR / "reference.jsonl", tape / "gguf" / "reference.jsonl")
        _link_equals(tape)
        to.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(to, "w:gz") as archive:
            archive.add(tape, arcname=".")
    if to.stat().st_size > MAX_BYTES:
        raise ValueError(f"{to} has {to.stat().st_size} bytes, more than {MAX_BYTES}: record a smaller run")


def _ask(root: Path, payload: Path, python: str, *words: str) -> str:
    """The last line that the box's interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(payload)}
    asked = subprocess.run([python, *words], cwd=root, env=env, check=True, capture_output=True, text=True)
    return asked.stdout.strip().splitlines()[-1]


def _record_stage(folder: Path, tape: Path) -> None:
    """What a stage said it produced, its adapter and its newest checkpoint; earlier ones only cost space."""
    tape.mkdir()
    for file in folder.glob("*.json"):
        shutil.copyfile(file, tape / file.name)
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    for kept in (folder / "adapter", newest):
        if kept is not None and kept.exists():
            shutil.copytree(kept, tape / kept.name)


def _link_equals(folder: Path) -> None:
    """Hard links for equal files, which the archive then holds once: a last checkpoint repeats the adapter."""
    first: dict[str, Path] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        original = first.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), file)
        if original is not file:
            file.unlink()
            os.link(original, file)


def unpack(recording: Path, into: Path) -> None:
    """Lay the recording out as a tape to play, with the distributions that the recorded image had installed."""
    with tarfile.open(recording) as archive:
        archive.extractall(into, filter="data")
    for name, version in json.loads((into / "versions.json").read_text()).items():
        distribution = into / "installed" / f"{name.replace('-', '_')}-{version}.dist-info"
        distribution.mkdir(parents=True)
        (distribution / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m daemon.sandbox.recording", description="record a finished run")
    parser.add_argument("--root", type=Path, required=True, help="the image's root on a box whose job is done")
    parser.add_argument("--python", required=True, help="the interpreter that ran it")
    parser.add_argument("--to", type=Path, default=RECORDING)
    given = parser.parse_args()
    record(given.root.absolute(), given.python, given.to.absolute())


if __name__ == "__main__":
    main()
