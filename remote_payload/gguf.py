"""GGUF stage, first part: merge the trained adapter and write one GGUF per quantisation into run/out.

No merged model is ever on disk: the adapter is added while llama.cpp's converter streams past the base model's tensors
(stream.py). F16, BF16 and Q8_0 leave the converter finished; K-quants take one more pass through llama_model_quantize.
Every file must have the size its tensors promise before it gets its name. Idempotent: a second start writes the same
bytes again.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remote_payload import answers, converter, llama, script, templates
from remote_payload.contract import Exit, JobFile, Stage, write_whole
from remote_payload.converter import ConverterUnavailable
from remote_payload.layout import Layout, final_adapter, plan_of
from remote_payload.llama import Quantiser
from remote_payload.merge import Delta, merge_with_peft, read_deltas, why_not_plain
from remote_payload.progress import Events
from remote_payload.quants import QUANTS, Quant
from remote_payload.script import ScriptFailed
from remote_payload.stream import Conversion, TooLargeForF16, clean_copy, finish, need_space

SIXTEEN = "sixteen.gguf"  # under run/gguf: the 16-bit file on the way to K-quants


def main() -> int:
    return script.run(Stage.GGUF, make)


def make(layout: Layout, job: JobFile, events: Events) -> Exit:
    """Write the GGUF files that the job asks for, then run/gguf/result.json and tools.json."""
    conversion = begin(layout, job)
    outputs, metrics = [], {}
    with answers.beside(layout):
        for file in written(conversion, layout, job):
            name, seconds = file.quant.name, file.seconds
            print(f"gguf: {file.path.name} {file.size} bytes in {seconds} s", flush=True)
            events.emit("gguf", quant=name, bytes=file.size, seconds=seconds)
            outputs.append(file.path.relative_to(layout.root).as_posix())
            metrics |= {f"{name}_bytes": float(file.size), f"{name}_seconds": seconds}
    write_whole(layout.stage(Stage.GGUF) / "tools.json", json.dumps(conversion.tools()))
    write_whole(layout.result(Stage.GGUF), json.dumps({"outputs": outputs, "steps": 0, "metrics": metrics}))
    return Exit.OK


@dataclass(frozen=True)
class Written:
    """A finished file: size in bytes, and the seconds it took."""

    quant: Quant
    path: Path
    size: int
    seconds: float


def begin(layout: Layout, job: JobFile) -> Conversion:
    """An empty run/out and run/gguf, and the conversion of base model and adapter. Raises ScriptFailed."""
    work = layout.stage(Stage.GGUF)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    shutil.rmtree(layout.out, ignore_errors=True)  # what an earlier try left must not go home with this one
    layout.out.mkdir()
    source, deltas = merge_source(layout, job)
    return Conversion(_converter(layout), source, deltas, job.name, llama.available(layout.root, patience_s=0))


def written(conversion: Conversion, layout: Layout, job: JobFile) -> Iterator[Written]:
    """The job's files, each as soon as it lies in run/out. Raises ScriptFailed."""
    work = layout.stage(Stage.GGUF)
    # K-quants last: llama-cpp-python may still be compiling in the background.
    for quant in sorted(map(_quant, job.gguf), key=lambda q: q.needs_quantiser):
        began = time.monotonic()
        path = layout.out / f"{job.name}-{quant.name}.gguf"
        if quant.needs_quantiser:
            size = _quantised(conversion, quant, path, work, layout.root)
        else:
            size = conversion.write(quant, path)
        yield Written(quant, path, size, round(time.monotonic() - began, 1))
    (work / SIXTEEN).unlink(missing_ok=True)


def problems(layout: Layout, job: JobFile) -> list[str]:
    """Why the base model cannot become the files the job asks for; asked before training hours are spent on it."""
    if plan_of(job, Stage.GGUF) is None:
        return []
    try:
        wanted = [_quant(name) for name in job.gguf]
        with tempfile.TemporaryDirectory(dir=layout.run, prefix="convertible-") as scratch:
            base = clean_copy(layout.model, Path(scratch) / "base")
            need_space(layout.run, Conversion(_converter(layout), base, {}, job.name).check(wanted))
    except ScriptFailed as failure:
        return [f"the base model cannot become a GGUF: {failure}"]
    return []


def merge_source(layout: Layout, job: JobFile) -> tuple[Path, dict[str, Delta]]:
    """A clean model folder and what is still to be added to it: nothing when PEFT had to merge beforehand."""
    work = layout.stage(Stage.GGUF)
    base = clean_copy(layout.model, work / "base")
    templates.deliver(base, job.reasoning)
    adapter = final_adapter(layout, job)
    reason = why_not_plain(adapter)
    if reason is None:
        return base, read_deltas(adapter)
    print(f"gguf: {reason}, so PEFT merges the whole model first", flush=True)
    merged = work / "merged"
    merge_with_peft(base, adapter, merged)
    for file in base.iterdir():
        if not (merged / file.name).exists() and not file.name.startswith("model"):
            shutil.copyfile(file, merged / file.name)
    return merged, {}


def _quantised(conversion: Conversion, quant: Quant, path: Path, work: Path, root: Path) -> int:
    """A K-quant by way of a 16-bit file, which stays for the next K-quant of this run and is never delivered."""
    quantiser = Quantiser.ready(root)
    sixteen = _sixteen_bit(conversion, work)
    predicted = conversion.predicted(quant)
    need_space(path.parent, predicted or sixteen.stat().st_size)
    part = path.with_name(f".{path.name}.part")
    quantiser.write(sixteen, part, quant)
    return finish(part, path, predicted)


def _sixteen_bit(conversion: Conversion, work: Path) -> Path:
    """float16 keeps three more bits of a small adapter than bfloat16; weights beyond its range need the latter."""
    path = work / SIXTEEN
    if not path.exists():
        try:
            conversion.write(QUANTS["F16"], path)
        except TooLargeForF16 as error:
            print(f"gguf: {error} is too large for float16; bfloat16 on the way to the K-quants", flush=True)
            conversion.write(QUANTS["BF16"], path)
    return path


def _converter(layout: Layout) -> Path:
    try:
        return converter.locate(layout.root)
    except ConverterUnavailable as error:
        raise ScriptFailed(Exit.PREFLIGHT, str(error)) from error


def _quant(name: str) -> Quant:
    if name not in QUANTS:
        raise ScriptFailed(Exit.BAD_CONFIG, f"unknown quantisation {name}; one of {', '.join(QUANTS)}")
    return QUANTS[name]


if __name__ == "__main__":
    sys.exit(main())
