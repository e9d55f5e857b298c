"""Plays a recorded real run in about two seconds, so that crash tests can afford hundreds of jobs.

Called by the replay image's bin/python as ``python replay.py TAPE MODULE [ARGUMENTS]``, in the box, where the uploaded
payload is on the path and nothing of the daemon is. The runner, its chain, hashing, the manifest and the reading of the
data are the real payload. What needs torch - the tokenizing half of `prepare`, `sft`, `dpo`, `gguf`, `evaluate`, the
`preflight` - plays what a real run left behind, and only for the job that was recorded: others are refused.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remote_payload import contract
from remote_payload.contract import Exit, JobFile, Stage

PLAYED = ("preflight", "converter", "prepare", "sft", "dpo", "gguf", "evaluate")
STAGE_S = 0.3  # how long a training stage takes on replay
CHAIN_SAYS = frozenset({"stage_start", "stage_done", "manifest", "warn", "error"})  # the chain says these itself

# What of job.json may differ from the recorded job.
FREE = frozenset({"job", "attempt", "name", "stages", "integration", "checkpoint_keep", "away_limit_s", "notify_url",
                  "chunk_size", "contract"})  # fmt: skip


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
            prepare.convert = _accepted
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


def _accepted(layout: Any, job: JobFile, found: Any) -> None:
    """The converter was asked about this model when the run was recorded."""


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
    _, tape, module, *rest = sys.argv
    sys.argv = [module, *rest]  # the payload's scripts read their own arguments
    return play(Tape(Path(tape)), module)


if __name__ == "__main__":
    sys.exit(main())
