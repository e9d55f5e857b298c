"""The texts beside a finished model: its card (README.md) and Ollama's Modelfile. Pure: returns text, touches no file.

What a box wrote appears only as numbers and as names that were checked; nothing of it becomes markup or a command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from daemon.artifacts.layout import local_name
from daemon.artifacts.levels import BEHAVIOUR
from daemon.artifacts.presence import size_lines
from daemon.artifacts.verify import Report
from daemon.domain.scores import COMPARED, told
from remote_payload.contract import ArtifactFile, Manifest, Role, Score, Stage, Subject

# Tokens that end a turn in the templates we know; an answer that does not stop at its own runs on for ever.
END_OF_TURN = (
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


@dataclass(frozen=True)
class Training:
    """What one stage's step events say."""

    stage: str
    steps: int
    first_loss: float
    last_loss: float


def trainings(lines: Iterable[bytes]) -> list[Training]:
    """Steps and losses by stage from metrics.jsonl; a line that is not a step with a loss is passed over."""
    losses: dict[str, list[tuple[int, float]]] = {stage.value: [] for stage in Stage}
    for line in lines:
        event = json_object(line)
        stage, step, loss = event.get("stage"), event.get("step"), event.get("loss")
        if not isinstance(stage, str) or stage not in losses:
            continue
        if type(step) is int and isinstance(loss, float) and math.isfinite(loss):
            losses[stage].append((step, loss))
    return [Training(stage, seen[-1][0], seen[0][1], seen[-1][1]) for stage, seen in losses.items() if seen]


def readme(
    name: str,
    base_model: str,
    manifest: Manifest,
    report: Report,
    trained: list[Training],
    data: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The model card in the form the model hub reads: YAML front matter, then what it is and how that is known."""
    front = {
        "base_model": base_model,
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "lora"],
    }
    return "\n".join([
        "---",
        *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()),
        "---",
        f"# {name}",
        "",
        f"A LoRA fine-tune of `{base_model}`, merged and stored as GGUF by job `{manifest.job}`, attempt",
        f"{manifest.attempt}. The job file is `job.yaml`, every step's numbers are in `metrics.jsonl`.",
        "",
        "| stage | steps | first loss | last loss |",
        "|---|---|---|---|",
        *(f"| {t.stage} | {t.steps} | {t.first_loss:.4f} | {t.last_loss:.4f} |" for t in trained),
        "",
        "| data | rows read | kept | trained at least once | cut at max_length | sha256 of the file |",
        "|---|---|---|---|---|---|",
        *(_data_row(data_set) for data_set in data),
        "",
        "| file | bytes | divergence from the trained model | same next token | sha256 |",
        "|---|---|---|---|---|",
        *(_file_row(file, report) for file in manifest.files if file.role is Role.GGUF),
        "",
        "Divergence is the mean KL in nats over the positions of the reference answers, measured on this computer.",
        "",
        *_better(manifest.scores),
        "## How it was verified",
        "",
        *(f"- {level.name}: {'passed' if level.passed else level.problem}" for level in report.levels),
        *(f"- Size: {line}" for line in size_lines(report.levels)),
        *(f"- Note: {warning}" for warning in report.warnings),
        "",
        "`receipt.json` holds every number, `SHA256SUMS` the hashes (`sha256sum -c SHA256SUMS`).",
        "",
        f"Run it: `ollama create {name} -f Modelfile`, or `llama-server -m` with the GGUF.",
        "",
    ])  # fmt: skip


def modelfile(manifest: Manifest, tokenizer: dict[str, Any], tokenizer_config: dict[str, Any]) -> str:
    """Ollama's recipe: the first GGUF, and a stop parameter for every token that ends a turn or a text."""
    gguf = next(local_name(file.path) for file in manifest.files if file.role is Role.GGUF)
    added = tokenizer.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    known = {str(token.get("content")) for token in tokens if isinstance(token, dict)}
    end = tokenizer_config.get("eos_token")
    stops = {token for token in END_OF_TURN if token in known} | ({end} if isinstance(end, str) else set())
    plain = sorted(token for token in stops if token.isprintable() and '"' not in token)
    return "\n".join([f"FROM ./{gguf}", *(f'PARAMETER stop "{token}"' for token in plain), ""])


def json_object(text: bytes) -> dict[str, Any]:
    """`text` as a JSON object; an empty one when it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # the card says less then; nothing is decided by it
        return {}
    return value if isinstance(value, dict) else {}


def _data_row(data_set: Mapping[str, Any]) -> str:
    counts = [data_set.get(count) for count in ("read", "kept", "trained", "truncated")]
    cells = ["-" if count is None else f"{count:,}" for count in counts]
    return f"| {data_set['kind']} | {' | '.join(cells)} | `{data_set['original_sha256']}` |"


def _better(scores: list[Score]) -> list[str]:
    """The section on held-out rows; none where the job has no such rows."""
    names: dict[str, str] = {Subject.BASE: "the base model", Subject.COMPARED: COMPARED}
    sentences = [f"- {sentence}" for sentence in told([asdict(score) for score in scores], names)]
    if not sentences:
        return []
    return ["## Is it better?", "", "The machine scored rows that no training saw. This model is", "", *sentences, ""]


def _file_row(file: ArtifactFile, report: Report) -> str:
    behaviour = next((level.numbers for level in report.levels if level.name == BEHAVIOUR and level.ran), {})
    scores = behaviour.get(str(file.quant), {})
    kl, top1 = scores.get("kl_mean"), scores.get("top1")
    measured = f"{kl:.5f} | {top1:.1%}" if kl is not None else "not measured | not measured"
    return f"| `{local_name(file.path)}` | {file.size} | {measured} | `{file.sha256}` |"
