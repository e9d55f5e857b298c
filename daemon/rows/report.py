"""Checked files as plain values, for `data-check --json` and for the screen that is drawn from the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from typing import TypedDict

from daemon.rows.canonical import RowFile
from daemon.rows.findings import Finding, common_prompts, findings, over
from daemon.rows.shapes import Row
from daemon.rows.survey import quantile

MOST = 0.995  # the length that all but a few rows keep within


class Lengths(TypedDict):
    median: int
    most: int  # 99.5 % of the rows are no longer
    longest: int
    total: int


class FileReport(TypedDict):
    file: str
    kind: str
    shape: str | None
    becomes: list[str]  # columns of the canonical row
    converted: bool
    unused: list[str]  # columns of the file that are left out
    rows: int
    bad: int
    problems: list[str]
    sha256: str
    characters: Lengths
    tokens: Lengths | None  # null: no tokenizer is at hand
    cut: int | None  # rows longer than max_length
    repeated: int
    repeated_but_for_case_and_blanks: int
    chosen: float | None  # characters of an answer on average
    rejected: float | None
    first_date: str | None
    last_date: str | None
    example: Row | None


class Overlap(TypedDict):
    file: str
    other: str
    prompts: int  # rows of `other` that ask what a row of `file` asks


class FindingView(TypedDict):
    level: str
    text: str
    mend: str


class DataReport(TypedDict):
    schema: str
    sound: bool
    max_length: int | None  # tokens: as given, or as the box will derive it; null: not counted
    files: list[FileReport]
    overlaps: list[Overlap]
    findings: list[FindingView]
    example: str | None  # the first row as the model gets it, where its tokenizer is at hand


def report(
    files: Sequence[RowFile], max_length: int | None = None, more: Sequence[Finding] = (), example: str | None = None
) -> DataReport:
    """`more` are findings that the rows alone do not show, `example` a row as the model would get it."""
    found = [*findings(files, max_length), *more]
    return DataReport(
        schema="homeport.data/2",
        sound=not any(file.problems for file in files) and not any(f.level == "REFUSED" for f in found),
        max_length=max_length,
        files=[_file(file, max_length) for file in files],
        overlaps=[
            Overlap(file=str(a.path), other=str(b.path), prompts=common_prompts(a, b)[0])
            for a, b in combinations(files, 2)
        ],
        findings=[FindingView(level=f.level.value, text=f.text, mend=f.mend) for f in found],
        example=example,
    )


def _file(file: RowFile, max_length: int | None) -> FileReport:
    survey = file.survey
    pairs = file.kind == "dpo" and survey.rows
    return FileReport(
        file=str(file.path),
        kind=file.kind.upper(),
        shape=file.shape.name if file.shape else None,
        becomes=list(file.shape.becomes) if file.shape else [],
        converted=bool(file.shape and file.shape.converts),
        unused=list(file.unused),
        rows=survey.rows,
        bad=file.bad,
        problems=list(file.problems),
        sha256=file.sha256,
        characters=_lengths(survey.lengths),
        tokens=_lengths(file.tokens) if file.tokens else None,
        cut=len(over(file, max_length)) if file.tokens and max_length else None,
        repeated=survey.exact.count,
        repeated_but_for_case_and_blanks=survey.alike.count - survey.exact.count,
        chosen=survey.chosen / survey.rows if pairs else None,
        rejected=survey.rejected / survey.rows if pairs else None,
        first_date=_day(min(survey.dates)) if survey.dates else None,
        last_date=_day(max(survey.dates)) if survey.dates else None,
        example=survey.example,
    )


def _lengths(values: Sequence[int]) -> Lengths:
    return Lengths(
        median=quantile(values, 0.5), most=quantile(values, MOST), longest=max(values, default=0), total=sum(values)
    )


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
