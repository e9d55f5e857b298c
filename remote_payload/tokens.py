"""Rows to token ids, once, for `prepare` that counts them and for the trainers that learn from them.

A chat row is rendered by the chat template: nothing is trained that the template would not say at inference, and a
row of which the template loses a part is refused. Labels are the ids the model learns; -100 marks what is only read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, TypeVar

from jinja2 import TemplateError

from remote_payload.contract import JobFile
from remote_payload.reasoning import OPEN, with_reasoning
from remote_payload.rows import Row

IGNORED = -100  # what the loss skips, by torch's convention
BATCH = 256  # texts tokenized in one call: fast, and few offsets in memory at a time

Made = TypeVar("Made")


class RowRefused(ValueError):
    """The chat template cannot say this row, or would say something else."""


@dataclass(frozen=True)
class Sample:
    """One SFT row. `labels` is as long as `ids`. `truncated`: the end is cut off, end-of-text and all."""

    ids: list[int]
    labels: list[int]
    truncated: bool = False

    @property
    def trained(self) -> bool:
        return any(label != IGNORED for label in self.labels)

    def cut(self, max_length: int) -> Sample:
        if len(self.ids) <= max_length:
            return self
        return Sample(self.ids[:max_length], self.labels[:max_length], truncated=True)


@dataclass(frozen=True)
class Pair:
    """One DPO row: the shared prompt and the two answers after it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    truncated: bool = False

    @property
    def longest(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def cut(self, max_length: int) -> Pair:
        if self.longest <= max_length:
            return self
        room = max(0, max_length - len(self.prompt))
        return replace(self, chosen=self.chosen[:room], rejected=self.rejected[:room], truncated=True)


@dataclass(frozen=True)
class Text:
    """A row as the model will read it. `learned`: stretches [start, end) in characters.

    `plain`: no template wrote it, so the tokenizer adds its special tokens and the end-of-text token closes it.
    """

    text: str
    learned: list[tuple[int, int]]
    plain: bool


@dataclass(frozen=True)
class Encoded:
    ids: list[int]
    learned: list[tuple[int, int]]  # stretches [start, end) in tokens


def samples(tokenizer: Any, rows: list[Row], job: JobFile) -> list[Sample]:
    """What SFT trains on, in the order of the file. A row whose answer lies wholly beyond max_length is left out."""
    return fitting(whole_samples(tokenizer, rows, job.reasoning), job.max_length)


def pairs(tokenizer: Any, rows: list[Row], job: JobFile) -> list[Pair]:
    """What DPO trains on. A row is left out where the cut leaves nothing that tells chosen from rejected."""
    return differing(whole_pairs(tokenizer, rows, job.reasoning), job.max_length)


def fitting(whole: list[Sample], max_length: int | None) -> list[Sample]:
    made = whole if max_length is None else [one.cut(max_length) for one in whole]
    return [one for one in made if one.trained]


def differing(whole: list[Pair], max_length: int | None) -> list[Pair]:
    made = whole if max_length is None else [one.cut(max_length) for one in whole]
    return [one for one in made if one.chosen != one.rejected]


def whole_samples(tokenizer: Any, rows: list[Row], reasoning: str, name: str = "SFT") -> list[Sample]:
    """Every row of the SFT data, or of other data called `name`, uncut. Raises RowRefused, which names the row."""
    texts = _each(name, rows, lambda row: _sample_text(tokenizer, with_reasoning(row, reasoning)))
    made = []
    for encoded in _encoded(tokenizer, texts):
        labels = [IGNORED] * len(encoded.ids)
        for start, end in encoded.learned:
            labels[start:end] = encoded.ids[start:end]
        made.append(Sample(encoded.ids, labels))
    return made


def whole_pairs(tokenizer: Any, rows: list[Row], reasoning: str) -> list[Pair]:
    """Every DPO row, uncut. Raises RowRefused, which names the row."""
    texts = _each("DPO", rows, lambda row: _pair_texts(tokenizer, with_reasoning(row, reasoning)))
    encoded = _encoded(tokenizer, (text for both in texts for text in both))
    made = []
    for chosen, rejected in zip(encoded, encoded, strict=True):  # one iterator: they alternate
        # Where the answer begins a token may have merged with the prompt, in one of the two or in both.
        start = min(chosen.learned[0][0], rejected.learned[0][0], _shared(chosen.ids, rejected.ids))
        made.append(Pair(chosen.ids[:start], chosen.ids[start:], rejected.ids[start:]))
    return made


def texts(tokenizer: Any, row: Row) -> tuple[Text, ...]:
    """What the model will read of a row: one text, or the two of a pair, chosen first. Raises RowRefused."""
    return _pair_texts(tokenizer, row) if "chosen" in row else (_sample_text(tokenizer, row),)


def _sample_text(tokenizer: Any, row: Row) -> Text:
    if "text" in row:
        return Text(row["text"], [(0, len(row["text"]))], plain=True)
    if isinstance(row.get("prompt"), str):
        return _continued(row["prompt"], row["completion"])
    if "prompt" in row:
        return _conversation(tokenizer, row, row["prompt"], row["completion"])
    return _conversation(tokenizer, row, [], row["messages"])


def _pair_texts(tokenizer: Any, row: Row) -> tuple[Text, Text]:
    make = _continued if isinstance(row["prompt"], str) else partial(_conversation, tokenizer, row)
    chosen, rejected = make(row["prompt"], row["chosen"]), make(row["prompt"], row["rejected"])
    if chosen.text == rejected.text:
        raise RowRefused("the chat template renders chosen and rejected alike, so the pair teaches nothing")
    return chosen, rejected


def _each(name: str, rows: list[Row], text: Callable[[Row], Made]) -> Iterator[Made]:
    for number, row in enumerate(rows, start=1):
        try:
            yield text(row)
        except RowRefused as error:
            raise RowRefused(f"{name} row {number}: {error}") from error


def _continued(prompt: str, answer: str) -> Text:
    return Text(prompt + answer, [(len(prompt), len(prompt) + len(answer))], plain=True)


def _conversation(tokenizer: Any, row: Row, prompt: list[Row], answer: list[Row]) -> Text:
    """Every assistant turn of `answer` is learned, its end-of-turn token included; what follows that is not."""
    messages = prompt + answer
    render = partial(_rendered, tokenizer, row.get("tools"))
    whole = render(messages).rstrip()  # some templates write a line end after the last turn, which nobody generates
    learned = []
    for i in range(len(prompt), len(messages)):
        if messages[i]["role"] == "assistant":
            start = _start(render(messages[:i], add_generation_prompt=True), whole)
            last = i + 1 == len(messages)
            end = len(whole) if last else _end(render(messages[: i + 1]), whole, tokenizer.eos_token or "")
            learned.append((start, end))
    _refuse_losses(whole, row, prompt, answer)
    return Text(whole, learned, plain=False)


def _rendered(tokenizer: Any, tools: list[Row] | None, messages: list[Row], **asks: bool) -> str:
    if tokenizer.chat_template is None:
        raise RowRefused("the model has no chat template and cannot say messages; write prompt and completion as texts")
    try:
        text: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **asks)
    except (TemplateError, TypeError) as error:  # TypeError: the template joins text with a content that is none
        raise RowRefused(f"the chat template cannot say it: {error}") from error
    return text


def _start(prompt: str, whole: str) -> int:
    """Where the answer to `prompt` begins in `whole`. A <think> that the prompt begins and no answer has is no part."""
    for beginning in (prompt, prompt.rstrip(), prompt.rstrip().removesuffix(OPEN)):
        if whole.startswith(beginning):
            return len(beginning)
    shared = _shared(prompt, whole)
    raise RowRefused(
        f"the chat template asks for the answer with {prompt[shared:][:40]!r} and renders it with "
        f"{whole[shared:][:40]!r}, so the model would learn what it is never asked for"
    )


def _end(earlier: str, whole: str, eos: str) -> int:
    """Where the turn that ends `earlier` ends in `whole`; `eos` may close a conversation after its last turn."""
    for ending in (earlier.rstrip(), earlier.rstrip().removesuffix(eos).rstrip()):
        if whole.startswith(ending):
            return len(ending)
    raise RowRefused(
        "the chat template renders an earlier turn differently once more turns follow; "
        "write one row for each answer, with the turns before it as its prompt"
    )


def _refuse_losses(whole: str, row: Row, prompt: list[Row], answer: list[Row]) -> None:
    """Raise RowRefused when something a person wrote is missing from `whole`, blanks apart.

    Earlier answers in `prompt` are not learned, and many templates rightly leave out their reasoning.
    """
    told = [message for message in prompt if message["role"] != "assistant"] + answer
    pieces = [(message["role"], message.get("content") or "") for message in told]
    calls = [call for message in answer for call in message.get("tool_calls") or []]
    pieces += [("tool call", call["function"]["name"]) for call in calls]
    pieces += [("tool", tool["function"]["name"]) for tool in row.get("tools") or []]
    rendered = _squeezed(whole)
    for kind, piece in pieces:
        if _squeezed(piece) not in rendered:
            raise RowRefused(f"the chat template leaves out a part of the {kind} {piece[:60]!r}")


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _encoded(tokenizer: Any, texts: Iterable[Text]) -> Iterator[Encoded]:
    """The template writes its own special tokens, so none are added there: that would double the beginning-of-text."""
    for plain, alike in groupby(texts, key=lambda text: text.plain):
        while batch := list(islice(alike, BATCH)):
            found = tokenizer(
                [text.text for text in batch],
                add_special_tokens=plain,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for text, ids, offsets in zip(batch, found["input_ids"], found["offset_mapping"], strict=True):
                learned = [_token_span(offsets, *span) for span in text.learned]
                if plain:
                    ids = ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]
                    learned = [(learned[0][0], len(ids))]
                yield Encoded(ids, learned)


def _token_span(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """The tokens that hold any of the characters [start, end); one that merged with the text before it included.

    What the tokenizer itself put at the end is in no place, (0, 0), and no place to search in.
    """
    of_text = next((i for i in range(len(offsets), 0, -1) if offsets[i - 1][1]), 0)
    first = bisect_right(offsets, start, hi=of_text, key=lambda at: at[1])
    return first, bisect_left(offsets, end, hi=of_text, key=lambda at: at[0])


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many tokens, or characters, the two begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
