"""Fills run/out, the folder that goes home: beside the GGUFs the adapter, the tokenizer as shipped, and the records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from remote_payload import templates
from remote_payload.contract import UNFINISHED, JobFile, Stage, write_whole
from remote_payload.layout import Layout
from remote_payload.progress import read_from

ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def fill(layout: Layout, job: JobFile, adapter: Path) -> None:
    """Copy and write everything but the GGUFs and reference.jsonl, then name all of it in run/gguf/result.json."""
    out = layout.out
    for left in out.glob(UNFINISHED):  # by a life that ended in here: the manifest would refuse it
        left.unlink()
    _copy(adapter, ADAPTER, out / "adapter")
    _copy(layout.model, TOKENIZER, out / "tokenizer")  # the base model's own bytes, whatever training rendered with
    templates.deliver(out / "tokenizer", job.reasoning)
    _copy(layout.model, ("config.json",), out / "base")
    steps = [event for event in read_from(layout.events, 0)[0] if event["kind"] == "step"]
    write_whole(out / "metrics.jsonl", "".join(json.dumps(step, ensure_ascii=False) + "\n" for step in steps))
    write_whole(out / "report.json", json.dumps(_report(layout), ensure_ascii=False, indent=1))
    for stage in (Stage.SFT, Stage.DPO):
        if layout.tensorboard(stage).exists():
            shutil.copytree(layout.tensorboard(stage), out / "tensorboard" / stage.lower(), dirs_exist_ok=True)
    if layout.log.exists():
        shutil.copyfile(layout.log, out / "log.txt")

    result = json.loads(layout.result(Stage.GGUF).read_text())
    files = sorted(path.relative_to(layout.root).as_posix() for path in out.rglob("*") if path.is_file())
    write_whole(layout.result(Stage.GGUF), json.dumps(result | {"outputs": files}))


def _report(layout: Layout) -> dict[str, object]:
    """What `prepare` counted, and what every stage measured."""
    stages = {stage: layout.result(stage) for stage in Stage}
    return {
        "prepared": json.loads(layout.prepared.read_text()) if layout.prepared.exists() else None,
        "stages": {stage: json.loads(path.read_text())["metrics"] for stage, path in stages.items() if path.exists()},
        "quality": json.loads((layout.stage(Stage.GGUF) / "quality.json").read_text()),
    }


def _copy(source: Path, names: tuple[str, ...], into: Path) -> None:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, into / name)
