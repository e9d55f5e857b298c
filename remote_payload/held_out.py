"""Last step of SFT and DPO: is the model better on rows that it never saw? Ends the stage where a gate says no.

Scored in a process of its own, with the plain model and the adapter that was left behind: what made the training fast
has no part in the judgement. Runs only where the job has evaluation rows. Leaves run/<stage>/held_out/scores.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from remote_payload import gates, script
from remote_payload.contract import Exit, Gain, JobFile, Score, Stage, Subject, write_whole
from remote_payload.intervals import gain
from remote_payload.layout import Layout
from remote_payload.likelihood import Question, RowScore, answer, ask
from remote_payload.progress import Events
from remote_payload.rows import read_sft
from remote_payload.script import ScriptFailed
from remote_payload.tokenizer import load_tokenizer

MOST = 1000  # rows scored, evenly spread over the file: enough for narrow intervals, and a minute at most
BASE, STARTED, COMPARED = "base", "start_from", "compare_to"  # the others are called by the stage that made them

Scored = dict[str, list[RowScore]]  # by model, the same rows in the same order


def held_out(layout: Layout, job: JobFile, events: Events) -> Exit:
    """Raises ScriptFailed: 41, 42 where a gate says that the model got worse or no better, 20 without rows to ask."""
    if job.eval_data is None or events.stage is None:
        raise ScriptFailed(Exit.BAD_CONFIG, "job.json names no held-out rows, or no stage was named")
    stage = Stage(events.stage)
    rows = read_sft(layout, job.eval_data).sound()
    questions = ask(load_tokenizer(layout), rows[:: max(1, math.ceil(len(rows) / MOST))], job)
    if not questions:
        raise ScriptFailed(Exit.BAD_DATA, f"no held-out row has an answer within {job.max_length} tokens")
    adapters = models(layout, job, stage)
    scored = known(layout, job, stage)
    scored |= score_models(layout, {name: path for name, path in adapters.items() if name not in scored}, questions)
    report(layout, stage, scored, events)
    judge(stage, nll_gain(scored[stage], scored[parent(job, stage)]), len(questions), job, events)
    return Exit.OK


def models(layout: Layout, job: JobFile, stage: Stage) -> dict[str, Path | None]:
    """The adapters to score, by the name of the model that each makes of the base model; None: the base model."""
    found: dict[str, Path | None] = {BASE: None}
    for name, source in ((STARTED, job.start_from), (COMPARED, job.compare_to)):
        if source is not None:
            found[name] = layout.file(source.path)
    if parent(job, stage) == Stage.SFT:
        found[Stage.SFT] = layout.adapter(Stage.SFT)
    return found | {stage: layout.adapter(stage)}


def parent(job: JobFile, stage: Stage) -> str:
    """The model that `stage` went on from."""
    if stage is Stage.DPO and job.sft:
        return Stage.SFT
    return STARTED if job.start_from else BASE


def known(layout: Layout, job: JobFile, stage: Stage) -> Scored:
    """What SFT scored already, for DPO."""
    file = layout.held_out(Stage.SFT)
    if parent(job, stage) != Stage.SFT or not file.exists():
        return {}
    return {name: [RowScore(*row) for row in rows] for name, rows in json.loads(file.read_text())["rows"].items()}


def score_models(layout: Layout, adapters: Mapping[str, Path | None], questions: Sequence[Question]) -> Scored:
    """Every model on every question; the base model's weights are loaded once."""
    disable_progress_bar()
    on_card = torch.cuda.is_available()
    model: Any = AutoModelForCausalLM.from_pretrained(
        layout.model,
        dtype=torch.bfloat16 if on_card else torch.float32,
        device_map="auto" if on_card else None,
        local_files_only=True,
    ).eval()
    scored = {}
    for name, adapter in adapters.items():
        if adapter is not None and isinstance(model, PeftModel):
            model.load_adapter(adapter, adapter_name=name)
            model.set_adapter(name)
        elif adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, adapter_name=name).eval()
        scored[name] = [answer(model, question) for question in questions]
    return scored


def report(layout: Layout, stage: Stage, scored: Scored, events: Events) -> None:
    """Tell every score, write scores.json, and name it in the stage's result with the figures: so it goes home too."""
    found = scores(scored, stage)
    for score in found:
        print(f"held out: {score.subject} {score.nll:.4f} nats a token over {score.rows} rows", flush=True)
        events.emit("eval", **asdict(score))
    rows = {name: [astuple(row) for row in of] for name, of in scored.items()}
    text = json.dumps({"scores": [asdict(score) for score in found], "rows": rows}, allow_nan=False)
    file = layout.held_out(stage)
    file.parent.mkdir(exist_ok=True)
    write_whole(file, text)
    result = json.loads(layout.result(stage).read_text())
    result["outputs"] = sorted({*result["outputs"], file.relative_to(layout.root).as_posix()})
    result["metrics"] |= {f"held_out_nll_{score.subject}": score.nll for score in found}
    write_whole(layout.result(stage), json.dumps(result))


def judge(stage: Stage, gained: Gain, rows: int, job: JobFile, events: Events) -> None:
    """Hold the change in NLL against the stage's gate, at the end of its interval that favours the new model."""
    name, value = {
        Stage.SFT: ("held_out_nll", gained.high),
        Stage.DPO: ("sft_perplexity", math.exp(-gained.high) - 1),
    }[stage]
    verdict = gates.judge(name, value, rows, job.gates)
    if verdict is None:
        return
    events.emit("gate", **asdict(verdict))
    if not verdict.ok:
        raise ScriptFailed(gates.GATES[name].code, str(verdict))


def scores(scored: Scored, new: str) -> list[Score]:
    """The new model, and what it is better by than the others that a person knows."""
    ours = scored[new]
    found = [score(Subject.NEW, ours)]
    for subject, name in ((Subject.BASE, BASE), (Subject.COMPARED, COMPARED)):
        if name not in scored:
            continue
        gains = {"nll_gain": nll_gain(ours, scored[name]), "right_gain": right_gain(ours, scored[name])}
        found.append(replace(score(subject, scored[name]), **gains))
    return found


def score(subject: Subject, rows: Sequence[RowScore]) -> Score:
    chosen = [row.right for row in rows if row.right is not None]
    return Score(
        subject,
        rows=len(rows),
        nll=sum(row.nll for row in rows) / sum(row.tokens for row in rows),
        choice_rows=len(chosen),
        right=sum(chosen) / len(chosen) if chosen else None,
    )


def nll_gain(ours: Sequence[RowScore], theirs: Sequence[RowScore]) -> Gain:
    """Nats a token by which `ours` is the more certain of what the rows say."""
    differences = [their.nll - our.nll for our, their in zip(ours, theirs, strict=True)]
    return gain(differences, [our.tokens for our in ours])


def right_gain(ours: Sequence[RowScore], theirs: Sequence[RowScore]) -> Gain | None:
    """The share of rows told right by `ours` beyond those by `theirs`; None where no row has a choice."""
    pairs = [(our.right, their.right) for our, their in zip(ours, theirs, strict=True)]
    differences = [float(our) - float(their) for our, their in pairs if our is not None and their is not None]
    return gain(differences, [1.0] * len(differences)) if differences else None


if __name__ == "__main__":
    sys.exit(script.run(None, held_out))
