"""Before anything is trained: read the data, say what was read, and refuse what would train the wrong thing.

Prints the integration line, alone on its line, from the rows really read; then the Prepared JSON. Writes
run/prepared.json. Exit 20 when the data is unsound, 21 when its counts are not those the job announced.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from remote_payload import adapters, contract, fetch, lengths, reasoning, reporting, script, versions
from remote_payload.contract import Exit, JobFile, Prepared, Stage, StageTraining
from remote_payload.layout import Layout
from remote_payload.progress import Events
from remote_payload.rows import Row, Table, read_dpo, read_sft
from remote_payload.script import ScriptFailed
from remote_payload.tokenizer_checks import border_problems, parity_problems

SHOWN = 20  # objections; the rest is a number
EMPTY = Table([], [])


@dataclass
class Findings:
    """What the data turns out to be, gathered on the way; `problems` in the order of finding."""

    sft: Table = EMPTY
    dpo: Table = EMPTY
    eval: Table = EMPTY
    kept: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    max_length: int | None = None
    reasoning: str | None = None
    problems: list[str] = field(default_factory=list)
    code: Exit = Exit.OK

    def object(self, code: Exit, problems: Iterable[str]) -> None:
        """Note `problems`; the first code noted is the one prepare ends with."""
        new = list(problems)
        if new and self.code is Exit.OK:
            self.code = code
        self.problems += new


def prepare(layout: Layout, job: JobFile, events: Events) -> Exit:
    found = Findings()
    line = read(layout, job, found)
    with open(layout.log, "a", encoding="utf-8") as log:
        log.write(f"{line}\n")
    print(line, flush=True)
    events.emit("integration", line=line, sft=len(found.sft.rows), dpo=len(found.dpo.rows))
    found.object(Exit.BAD_CONFIG, reporting.problems(job))
    if found.code is Exit.OK:
        fetch_model(layout, job)
        found.object(Exit.BAD_CONFIG, adapter_problems(layout, job))
        tokenize(layout, job, found)
        convert(layout, job, found)
    prepared = conclude(found, line)
    contract.write_whole(layout.prepared, contract.dump(prepared))
    events.emit("prepared", ok=prepared.ok, kept=found.kept, truncated=found.truncated, steps=found.steps)
    print(contract.dump(prepared), flush=True)
    return found.code


def read(layout: Layout, job: JobFile, found: Findings) -> str:
    """Read and count every row, hold the counts against the job's, and return the integration line."""
    if job.sft_data:
        found.sft = read_sft(layout, job.sft_data)
    if job.dpo_data:
        found.dpo = read_dpo(layout, job.dpo_data)
    if job.eval_data:
        found.eval = read_sft(layout, job.eval_data)
    for table in (found.sft, found.dpo, found.eval):
        found.object(Exit.BAD_DATA, (str(problem) for problem in table.problems))
    sft, dpo = len(found.sft.rows), len(found.dpo.rows)
    found.object(Exit.INTEGRATION, count_problems(job, sft, dpo))
    return job.integration.line(sft, dpo)


def count_problems(job: JobFile, sft: int, dpo: int) -> list[str]:
    """How the rows read differ from those announced in the spec and counted on the workstation."""
    announced = job.integration
    problems = [] if announced.tag.strip() else ["the job has no integration tag, so its line could be anybody's"]
    for name, rows, source, promised in (
        ("SFT", sft, job.sft_data, announced.sft_rows),
        ("DPO", dpo, job.dpo_data, announced.dpo_rows),
    ):
        if rows != promised:
            problems.append(f"{rows} {name} rows read, {promised} announced")
        if source and rows != source.rows:
            problems.append(f"{rows} {name} rows read, the workstation counted {source.rows}")
    return problems


def fetch_model(layout: Layout, job: JobFile) -> None:
    """The base model in place: uploaded already, or downloaded from the hub (HF_TOKEN in the environment if needed)."""
    if not job.model.repo:
        if (layout.model / "config.json").exists():
            return
        raise ScriptFailed(Exit.BAD_CONFIG, f"the base model {job.model.name} was not uploaded and names no repository")
    fetch.fetch(layout, job.model.repo, job.model.revision)


def adapter_problems(layout: Layout, job: JobFile) -> list[str]:
    """Why the job cannot go on from the adapter that it names."""
    if job.start_from is None:
        return []
    folder = layout.file(job.start_from.path)
    config = json.loads((folder / adapters.CONFIG).read_text())
    found = [
        *adapters.strangeness(config),
        *adapters.base_problems(config, job.model.name),
        *adapters.lora_problems(config, job.lora),
        *adapters.fit_problems(folder, layout.model),
    ]
    return [f"start_from: {job.start_from.name}: {problem}" for problem in found]


def tokenize(layout: Layout, job: JobFile, found: Findings) -> None:
    """Turn the rows into the very ids the trainers will see, count them, and check what must hold of each."""
    from remote_payload import templates, tokens
    from remote_payload.tokenizer import end_ids, load_tokenizer

    tokenizer = load_tokenizer(layout)
    strings = [text for row in (*found.sft.rows, *found.dpo.rows) for text in texts(row)]
    found.object(Exit.PREFLIGHT, parity_problems(layout.model / "tokenizer.json", tokenizer, strings))
    answers = [answer for row in (*found.sft.rows, *found.dpo.rows) for answer in reasoning.answers(row)]
    try:
        found.reasoning = reasoning.settled(job.reasoning, templates.opens_reasoning(tokenizer), answers)
        found.object(Exit.BAD_DATA, template_problems(tokenizer, found.reasoning))
        samples = tokens.whole_samples(tokenizer, found.sft.rows, found.reasoning) if job.sft else []
        pairs = tokens.whole_pairs(tokenizer, found.dpo.rows, found.reasoning) if job.dpo else []
        held_out = tokens.whole_samples(tokenizer, found.eval.rows, found.reasoning, "evaluation")
    except (reasoning.Unclear, tokens.RowRefused) as error:
        found.object(Exit.BAD_DATA, [str(error)])
        return
    of_rows = {Stage.SFT: [len(sample.ids) for sample in samples], Stage.DPO: [pair.longest for pair in pairs]}
    found.lengths = {stage: lengths.spread(of_stage) for stage, of_stage in of_rows.items() if of_stage}
    found.max_length = job.max_length or lengths.fitting(of_rows.values(), _longest(layout))
    found.object(Exit.BAD_DATA, lengths.objections(of_rows, found.max_length))
    ends = end_ids(layout, tokenizer)

    if job.sft and job.sft_data:
        samples = tokens.fitting(samples, found.max_length)
        _count(found, Stage.SFT, job.sft, job.batch_size, [(len(s.ids), s.truncated) for s in samples])
        found.object(Exit.BAD_DATA, border_problems("SFT", tokenizer, ends, [(s.ids, s.truncated) for s in samples]))
    if job.dpo and job.dpo_data:
        pairs = tokens.differing(pairs, found.max_length)
        read = [(2 * len(p.prompt) + len(p.chosen) + len(p.rejected), p.truncated) for p in pairs]
        _count(found, Stage.DPO, job.dpo, job.batch_size, read)
        ids = [(p.prompt + answer, p.truncated) for p in pairs for answer in (p.chosen, p.rejected)]
        found.object(Exit.BAD_DATA, border_problems("DPO", tokenizer, ends, ids))
    if held_out and not tokens.fitting(held_out, found.max_length):  # they are scored when the training is paid for
        found.object(Exit.BAD_DATA, [f"no evaluation row has an answer within {found.max_length} tokens"])


def template_problems(tokenizer: Any, settled: str) -> list[str]:
    """Why no template can be delivered that begins no answer with <think>, where one is wanted."""
    from remote_payload import templates

    if settled != "none" or not tokenizer.chat_template:
        return []
    if templates.opens_reasoning(tokenizer, reasoning.without_opening(tokenizer.chat_template)):
        return [
            "reasoning: none needs a chat template that begins no answer with <think>, and none is known; use empty"
        ]
    return []


def convert(layout: Layout, job: JobFile, found: Findings) -> None:
    """Ask the converter whether it knows this architecture and tokenizer, before hours are spent on training it."""
    from remote_payload import gguf

    found.object(Exit.BAD_CONFIG, gguf.problems(layout, job))


def steps(rows: int, training: StageTraining, batch: int) -> int:
    """Optimizer steps: epochs times those of one, rounded up, capped by the spec's max_steps. As the estimate counts.

    The last step of an epoch may be short: it is not filled from the next epoch, which begins with one of its own.
    """
    derived = math.ceil(training.epochs * math.ceil(rows / batch))
    return min(derived, training.max_steps or derived)


def texts(row: Row) -> list[str]:
    """Every piece of text of a row, as a person wrote it."""
    pieces = []
    for value in row.values():
        if isinstance(value, str):
            pieces.append(value)
        elif isinstance(value, list):
            pieces += [message["content"] for message in value if message.get("content")]
    return pieces


def conclude(found: Findings, line: str) -> Prepared:
    hidden = len(found.problems) - SHOWN
    return Prepared(
        ok=found.code is Exit.OK,
        line=line,
        sft_rows=len(found.sft.rows),
        dpo_rows=len(found.dpo.rows),
        eval_rows=len(found.eval.rows),
        kept=found.kept,
        truncated=found.truncated,
        steps=found.steps,
        tokens=found.tokens,
        lengths=found.lengths,
        max_length=found.max_length,
        reasoning=found.reasoning,
        problems=found.problems[:SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []),
        exit_code=found.code,
        versions=versions.installed(),
    )


def _count(found: Findings, stage: Stage, training: StageTraining, batch: int, rows: list[tuple[int, bool]]) -> None:
    """Rows as (tokens, truncated), into the counts of `stage`."""
    found.kept[stage] = len(rows)
    found.truncated[stage] = sum(truncated for _, truncated in rows)
    found.tokens[stage] = sum(length for length, _ in rows)
    found.steps[stage] = steps(len(rows), training, batch)


def _longest(layout: Layout) -> int:
    """Tokens that the base model can read at once."""
    limit: int = json.loads((layout.model / "config.json").read_text()).get("max_position_embeddings", lengths.LONGEST)
    return limit


if __name__ == "__main__":
    sys.exit(script.run(None, prepare))
