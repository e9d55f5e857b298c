"""A box image that replays a recorded real run in about two seconds, so that crash tests can afford hundreds of jobs.

The runner, its chain, hashing, the manifest and the reading of the data are the real payload. What needs torch - the
tokenizing half of `prepare`, `sft`, `dpo`, `gguf`, `evaluate`, the `preflight` - plays what a real run left behind, and
only for the job that was recorded: other data or settings are refused.

    python -m daemon.sandbox.replay record --root BOXROOT --python PYTHON --to FILE     a finished box's root -> FILE
    python replay.py play TAPE MODULE [ARGUMENTS]                                       called by the image's bin/python
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remote_payload import contract
from remote_payload.contract import Exit, JobFile, Stage

RECORDING = Path(__file__).with_name("recordings") / "nano.tar.gz"
PLAYED = ("preflight", "converter", "prepare", "sft", "dpo", "gguf", "evaluate")
MAX_BYTES = 5_000_000  # of the recording: it lies in the repository
STAGE_S = 0.3  # how long a training stage takes on replay
CHAIN_SAYS = frozenset({"stage_start", "stage_done", "manifest", "warn", "error"})  # the chain says these itself

# What of job.json may differ from the recorded job.
FREE = frozenset({"job", "attempt", "name", "stages", "integration", "checkpoint_keep", "away_limit_s", "notify_url",
                  "chunk_size", "contract"})  # fmt: skip

VERSIONS = """
import json, re, sys
from importlib.metadata import version
names = re.findall(r"^([\\w.-]+)==", open(sys.argv[1]).read(), re.M)
print(json.dumps({name: version(name) for name in (*names, "torch")}))
"""


# Recording


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
        shutil.copytree(root / contract.DATA_DIR, tape / contract.DATA_DIR)  # with it, the recorded job can be run again
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


# Playing. In the box the payload is on the path, as it was uploaded; nothing of the daemon is.


@dataclasses.dataclass(frozen=True)
class Tape:
    """An unpacked recording."""

    folder: Path

    def refuse_others(self, job: JobFile) -> None:
        """Raises ScriptFailed when `job` is not the job that was recorded."""
        from remote_payload.script import ScriptFailed

        recorded = contract.load(JobFile, (self.folder / contract.JOB_FILE).read_bytes())
        differing = [name for name, value in _essence(job).items() if value != _essence(recorded)[name]]
        if differing:
            raise ScriptFailed(Exit.BAD_CONFIG, f"this image replays another job: {', '.join(differing)} differ")

    def lines(self, stage: Stage) -> Iterator[tuple[float, dict[str, Any]]]:
        """The stage's own events, each with its share (0 to 1) of the stage's time that passes before it."""
        text = (self.folder / contract.EVENTS_FILE).read_text()
        every = [line for line in map(json.loads, text.splitlines()) if line["stage"] == stage]
        own = [line for line in every if line["kind"] not in CHAIN_SAYS]
        if not own:
            return
        before, whole = own[0]["t"], max(own[-1]["t"] - own[0]["t"], 1e-9)
        for line in own:
            yield (line["t"] - before) / whole, line
            before = line["t"]

    def copy(self, name: str, to: Path) -> None:
        """Bring a recorded file or folder, whole or not at all."""
        source, beside = self.folder / name, to.with_name(f".{to.name}.new")
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(source, beside)
            shutil.rmtree(to, ignore_errors=True)
        else:
            shutil.copyfile(source, beside)
        beside.replace(to)


def _essence(job: JobFile) -> dict[str, Any]:
    """All of a job that decides what its run yields."""
    fields = {name: value for name, value in dataclasses.asdict(job).items() if name not in FREE}
    for name in ("sft_data", "dpo_data", "eval_data"):
        fields[name] = fields[name] and (fields[name]["sha256"], fields[name]["rows"])
    return {**fields, "stages": [plan.stage for plan in job.stages]}


def play(tape: Tape, module: str) -> int:
    """Do what `remote_payload.<module>` would, from the tape. The exit code."""
    from remote_payload import prepare, script

    match module:
        case "converter":
            return Exit.OK
        case "preflight":
            return _play_preflight(tape)
        case "prepare":
            prepare.tokenize = _tokenized(tape)
            return script.run(None, prepare.prepare)
        case "sft" | "dpo":
            return script.run(Stage(module.upper()), _trained(tape, Stage(module.upper())))
        case "gguf":
            return script.run(Stage.GGUF, _converted(tape))
        case _:
            return script.run(Stage.GGUF, _evaluated(tape))


def _play_preflight(tape: Tape) -> int:
    """The recorded report, with what this machine can say itself."""
    from remote_payload.processes import boot_id

    report = json.loads((tape.folder / "preflight.json").read_text())
    print(json.dumps(report | {"boot_id": boot_id(), "disk_free": shutil.disk_usage(".").free}))
    return Exit.OK


def _tokenized(tape: Tape) -> Callable[..., None]:
    def tokenize(layout: Any, job: JobFile, found: Any) -> None:
        tape.refuse_others(job)
        recorded = contract.load(contract.Prepared, (tape.folder / contract.PREPARED_FILE).read_bytes())
        for name in ("kept", "truncated", "tokens", "steps"):
            getattr(found, name).update(getattr(recorded, name))

    return tokenize


def _trained(tape: Tape, stage: Stage) -> Callable[..., Exit]:
    def train(layout: Any, job: JobFile, events: Any) -> Exit:
        from remote_payload import checkpoints

        tape.refuse_others(job)
        name, folder = stage.lower(), layout.stage(stage)
        whole = [c.step for c in map(checkpoints.whole, folder.glob("checkpoint-*")) if c is not None]
        resumed = max(whole, default=0)
        if resumed:
            events.emit("resume", step=resumed, path=f"{contract.RUN_DIR}/{name}/checkpoint-{resumed}")
        for share, line in tape.lines(stage):
            if resumed and line.get("step", 0) <= resumed:
                continue
            if layout.stop.exists():
                return Exit.STOPPED
            time.sleep(share * STAGE_S)
            if line["kind"] == "checkpoint":
                kept = f"{name}/{Path(line['path']).name}"
                if not (tape.folder / kept).exists():
                    continue  # only the newest one is recorded
                tape.copy(kept, layout.run / kept)
            _emit(events, line)
        tape.copy(f"{name}/adapter", layout.adapter(stage))
        tape.copy(f"{name}/result.json", layout.result(stage))
        return Exit.OK

    return train


def _converted(tape: Tape) -> Callable[..., Exit]:
    def convert(layout: Any, job: JobFile, events: Any) -> Exit:
        tape.refuse_others(job)
        for quant in job.gguf:
            tape.copy(f"gguf/{quant}.gguf", layout.out / f"{job.name}-{quant}.gguf")
        for file in (tape.folder / "gguf").glob("*.json"):
            tape.copy(f"gguf/{file.name}", layout.stage(Stage.GGUF) / file.name)
        for _, line in tape.lines(Stage.GGUF):
            _emit(events, line)
        return Exit.OK

    return convert


def _evaluated(tape: Tape) -> Callable[..., Exit]:
    def evaluate(layout: Any, job: JobFile, events: Any) -> Exit:
        from remote_payload import outbox

        tape.refuse_others(job)
        tape.copy("gguf/reference.jsonl", layout.out / "reference.jsonl")
        last = [plan.stage for plan in job.stages if plan.stage is not Stage.GGUF][-1]
        outbox.fill(layout, job, layout.adapter(last))
        return Exit.OK

    return evaluate


def _emit(events: Any, line: dict[str, Any]) -> None:
    fields = {name: v for name, v in line.items() if name not in ("v", "seq", "t", "stage", "nonce", "kind")}
    events.emit(line["kind"], **fields)


def main() -> int:
    """Command line."""
    if sys.argv[1:2] == ["play"]:
        _, _, tape, module, *rest = sys.argv
        sys.argv = [module, *rest]  # the payload's scripts read their own arguments
        return play(Tape(Path(tape)), module)
    parser = argparse.ArgumentParser(prog="python -m daemon.sandbox.replay", description=__doc__)
    commands = parser.add_subparsers(required=True)
    recorder = commands.add_parser("record", help="record a finished run")
    recorder.add_argument("--root", type=Path, required=True, help="the image's root on a box whose job is done")
    recorder.add_argument("--python", required=True, help="the interpreter that ran it")
    recorder.add_argument("--to", type=Path, default=RECORDING)
    given = parser.parse_args()
    record(given.root.absolute(), given.python, given.to.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
