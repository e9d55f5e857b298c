"""What is to be said about data that could be read: a table of rules for one file, and one for files together.

Rows that cannot be trained on are refused where they are read (shapes.py). These rules see what no single row shows;
most of them warn, since only the person knows whether it was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from daemon.rows.canonical import RowFile
from daemon.rows.tokens import MAY_CUT

LENGTH_BIAS = 1.5  # chosen to rejected; a judgement: from here on length alone tells most pairs apart


class Level(StrEnum):
    REFUSED = "REFUSED"
    WARNING = "WARNING"


@dataclass(frozen=True)
class Finding:
    level: Level
    text: str
    mend: str


@dataclass(frozen=True)
class Rule:
    """`see` returns the sentence, or None when there is nothing to say."""

    name: str
    level: Level
    see: Callable[[RowFile], str | None]
    mend: str


@dataclass(frozen=True)
class PairRule:
    """The same for a data set that is trained on and the evaluation's."""

    name: str
    level: Level
    see: Callable[[RowFile, RowFile], str | None]
    mend: str


def findings(files: Sequence[RowFile], max_length: int | None = None) -> list[Finding]:
    """Everything the tables say about `files`, and about their tokens where `max_length` is known; refusals first."""
    cut = [found for file in files if max_length and (found := _cut(file, max_length))]
    return sorted([*cut, *_all(files)], key=lambda found: found.level is not Level.REFUSED)


def _all(files: Sequence[RowFile]) -> Iterator[Finding]:
    for rule in RULES:
        for file in files:
            if text := rule.see(file):
                yield Finding(rule.level, text, rule.mend)
    for pair_rule in PAIR_RULES:
        for trained in (file for file in files if file.kind != "eval"):
            for held_out in (file for file in files if file.kind == "eval"):
                if text := pair_rule.see(trained, held_out):
                    yield Finding(pair_rule.level, text, pair_rule.mend)


def common_prompts(a: RowFile, b: RowFile) -> tuple[int, int]:
    """How many rows of `b` ask what a row of `a` asks too, and the line of the first of them (0: none)."""
    asked = set(a.survey.prompts)
    found = [line for line, prompt in zip(b.survey.lines, b.survey.prompts, strict=True) if prompt in asked]
    return len(found), found[0] if found else 0


def over(file: RowFile, max_length: int) -> list[int]:
    """The lines of the rows that are longer than `max_length` tokens."""
    counted = zip(file.survey.lines, file.tokens or (), strict=False)
    return [line for line, length in counted if length > max_length]


def _cut(file: RowFile, max_length: int) -> Finding | None:
    lines = over(file, max_length)
    share = MAY_CUT.get(file.kind)
    if share is None or len(lines) <= share * file.survey.rows:
        return None
    return Finding(
        Level.REFUSED,
        f"{file.path}:{lines[0]}: {len(lines):,} of {file.survey.rows:,} rows are longer than max_length "
        f"{max_length:,} and would lose their end, more than {share:.0%}",
        "shorten them, raise max_length, or leave it out of the job file: then it fits",
    )


def _duplicates(file: RowFile) -> str | None:
    again = file.survey.exact
    if not again.count:
        return None
    return f"{file.path}:{again.first}: {again.count:,} of {file.survey.rows:,} rows are an earlier row once more"


def _alike(file: RowFile) -> str | None:
    count = file.survey.alike.count - file.survey.exact.count
    return f"{file.path}: {count:,} rows differ from an earlier one only in case or blanks" if count else None


def _marked(file: RowFile) -> str | None:
    marked = file.survey.marked
    if not marked.count:
        return None
    return f"{file.path}:{marked.first}: {marked.count:,} rows hold special tokens such as <|im_start|> as text"


def _length_bias(file: RowFile) -> str | None:
    chosen, rejected, rows = file.survey.chosen, file.survey.rejected, file.survey.rows
    if not rejected or 1 / LENGTH_BIAS < chosen / rejected < LENGTH_BIAS:
        return None
    return (
        f"{file.path}: chosen answers have {chosen / rows:,.0f} characters on average, rejected "
        f"{rejected / rows:,.0f}: the model may learn length instead of what is better"
    )


def _leak(trained: RowFile, held_out: RowFile) -> str | None:
    count, first = common_prompts(trained, held_out)
    if not count:
        return None
    return (
        f"{held_out.path}:{first}: {count:,} of {held_out.survey.rows:,} evaluation rows ask what rows of "
        f"{trained.path} ask too: the score would be flattered"
    )


def _not_later(trained: RowFile, held_out: RowFile) -> str | None:
    if not trained.survey.dates or not held_out.survey.dates:
        return None
    newest = max(trained.survey.dates)
    early = sum(when <= newest for when in held_out.survey.dates)
    if not early:
        return None
    return (
        f"{held_out.path}: {early:,} of {len(held_out.survey.dates):,} dated evaluation rows are not later than the "
        f"newest row of {trained.path}: of a time series the model would have seen the answer"
    )


RULES = (
    Rule("duplicates", Level.WARNING, _duplicates, "take them out, unless they are meant to count more"),
    Rule("alike", Level.WARNING, _alike, "take them out, unless they are meant to count more"),
    Rule("marked", Level.WARNING, _marked, "write messages without them: the model's template adds its own"),
    Rule(
        "length bias", Level.WARNING, _length_bias, "balance the lengths, or look at lengths when you judge the result"
    ),
)
PAIR_RULES = (
    PairRule("leak", Level.WARNING, _leak, "take these rows out of one of the two files"),
    PairRule("not later", Level.WARNING, _not_later, "evaluate on rows from after the last training day"),
)
