"""`jobctl data-check`: each file in a few lines, what the files have in common, a row, and what to think about."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator

from daemon.cli.terminal import Look
from daemon.rows.report import DataReport, FileReport, Lengths
from daemon.rows.shapes import Row

LABEL = 13  # width of the left column
TEXT_LINES = 6  # of one turn of the example


def screen(report: DataReport, look: Look, uncounted: str) -> str:
    """`uncounted` says why there are no tokens; empty when there are."""
    lines: list[str] = []
    for file in report["files"]:
        lines += [*_file(file, report["max_length"], look), ""]
    if uncounted:
        lines += [*_wrapped("Tokens", f"not counted: {uncounted}", look), ""]
    for overlap in report["overlaps"]:
        asked = f"{overlap['prompts']:,} rows of {overlap['other']} ask what {overlap['file']} asks"
        lines += [*_wrapped("In common", asked, look)]
    lines += [""] * bool(report["overlaps"])
    if report["example"]:
        lines += ["A row as the model gets it in training", *_said("", report["example"], look, TEXT_LINES * 3), ""]
    elif example := next((file for file in report["files"] if file["example"]), None):
        lines += [f"A row of {example['file']}, as it is sent"]
        lines += [*_row(example["example"] or {}, look), ""]
    for finding in report["findings"]:
        refused = finding["level"] == "REFUSED"
        text = textwrap.wrap(finding["text"], look.width, initial_indent="! ", subsequent_indent="  ")
        lines += [look.paint(line, "bad" if refused else "warn") for line in text]
        lines.append(f"  Try: {finding['mend']}")
    lines.append(look.paint(*_verdict(report)))
    return "\n".join(lines)


def _verdict(report: DataReport) -> tuple[str, str]:
    warnings = sum(finding["level"] == "WARNING" for finding in report["findings"])
    also = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return ("Sound" + also, "warn" if warnings else "good") if report["sound"] else ("Refused" + also, "bad")


def _file(file: FileReport, max_length: int | None, look: Look) -> Iterator[str]:
    bad = f", {file['bad']:,} bad" if file["bad"] else ""
    yield look.paint(f"{file['file']}   {file['rows']:,} {file['kind']} rows{bad}", "bold")
    form = file["shape"] or "nothing that is known"
    yield from _wrapped("Read as", form + (f", written as {', '.join(file['becomes'])}" * file["converted"]), look)
    if file["unused"]:
        yield from _wrapped("Left out", ", ".join(file["unused"]), look)
    if not file["rows"]:
        return
    yield from _wrapped("Characters", _lengths(file["characters"]), look)
    if file["tokens"] and max_length:
        cut = f"; {file['cut']:,} rows over max_length {max_length:,}"
        yield from _wrapped("Tokens", _lengths(file["tokens"]) + cut, look)
    yield from _wrapped(
        "Repeated",
        f"{file['repeated']:,} rows exactly, {file['repeated_but_for_case_and_blanks']:,} but for case and blanks",
        look,
    )
    if file["chosen"] is not None:
        averages = f"chosen {file['chosen']:,.0f}, rejected {file['rejected']:,.0f} characters on average"
        yield from _wrapped("Answers", averages, look)
    if file["first_date"]:
        yield from _wrapped("Dated", f"{file['first_date']} to {file['last_date']}", look)


def _lengths(lengths: Lengths) -> str:
    return (
        f"{lengths['total']:,}; a row {lengths['median']:,} in the median, "
        f"99.5 % within {lengths['most']:,}, longest {lengths['longest']:,}"
    )


def _row(row: Row, look: Look) -> Iterator[str]:
    for key, value in row.items():
        if isinstance(value, str):
            yield from _said(key, value, look)
            continue
        for item in value:
            said = " ".join([item.get("content", ""), *(json.dumps(call) for call in item.get("tool_calls", ()))])
            own = key if key in ("chosen", "rejected") else item.get("role", "tool offered")
            yield from _said(own, said if "role" in item else json.dumps(item), look)


def _said(who: str, text: str, look: Look, most: int = TEXT_LINES) -> list[str]:
    lines = [
        line
        for part in text.strip().split("\n")
        for line in textwrap.wrap(part, max(1, look.width - LABEL - 2)) or [""]
    ]
    if len(lines) > most:
        lines = [*lines[:most], f"... {len(lines) - most} more lines"]
    return [f"  {who if i == 0 else '':<{LABEL}}{line}".rstrip() for i, line in enumerate(lines)]


def _wrapped(label: str, text: str, look: Look) -> list[str]:
    return textwrap.wrap(
        text,
        look.width,
        initial_indent=f"  {label:<{LABEL}}",
        subsequent_indent=" " * (LABEL + 2),
        break_on_hyphens=False,
    )
