"""Canonical data rows: one JSON object a line, read and checked here and nowhere else on the box.

SFT: {"messages": [{"role", "content"}, ...]} or {"prompt", "completion"} or {"text"}.
DPO: {"prompt", "chosen", "rejected"}. A prompt or answer is a string or a list of messages. A row of messages may
carry {"tools"}; an assistant's turn that has "tool_calls" may have no content, nor need a tool's answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote_payload.contract import DataFile
from remote_payload.layout import Layout

Row = dict[str, Any]
ROLES = frozenset({"system", "user", "assistant", "tool"})


class Unsound(ValueError):
    """A data file in which not every row is sound, where only a whole one will do."""


@dataclass(frozen=True)
class Problem:
    """One objection to a data file, told in the way editors understand: file:line: message."""

    file: str
    line: int  # 0: the file as a whole
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True)
class Table:
    """The rows of one file that are sound, and what is wrong with the others."""

    rows: list[Row]
    problems: list[Problem]

    def sound(self) -> list[Row]:
        """Every row. Raises Unsound where something is wrong: it is not the file that `prepare` counted."""
        if self.problems:
            raise Unsound(f"the data is not what was prepared: {self.problems[0]}")
        return self.rows


def read_sft(layout: Layout, source: DataFile) -> Table:
    return _read(layout.file(source.path), source, _sft_problem)


def read_dpo(layout: Layout, source: DataFile) -> Table:
    return _read(layout.file(source.path), source, _dpo_problem)


def _read(path: Path, source: DataFile, objection: Callable[[Row], str | None]) -> Table:
    """Raises FileNotFoundError. Duplicate keys, NaN and non-objects are objections, as is another sha256."""
    content = path.read_bytes()
    rows, problems = [], []
    if hashlib.sha256(content).hexdigest() != source.sha256:
        problems.append(Problem(source.path, 0, "is not the file the workstation sent (sha256 differs)"))
    for number, line in _lines(content):
        try:
            row = json.loads(line, parse_constant=_no_constant)
        except ValueError as error:
            problems.append(Problem(source.path, number, f"not JSON: {error}"))
            continue
        found = _tools_problem(row) or objection(row) if isinstance(row, dict) else "not a JSON object"
        if found:
            problems.append(Problem(source.path, number, found))
        else:
            rows.append(row)
    return Table(rows, problems)


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1; only a line feed ends a line (a row may hold U+2028), blank lines are skipped."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _tools_problem(row: Row) -> str | None:
    tools = row.get("tools")
    if tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return None
    return "tools is not a list of objects"


def _sft_problem(row: Row) -> str | None:
    if "messages" in row:
        return _messages_problem("messages", row["messages"]) or _end_problem("messages", row["messages"])
    if "prompt" in row:
        return _answers_problem(row, "prompt", "completion")
    if "text" in row:
        return _text_problem("text", row["text"])
    return f"has none of messages, prompt, text (has {', '.join(sorted(row)) or 'nothing'})"


def _dpo_problem(row: Row) -> str | None:
    found = _answers_problem(row, "prompt", "chosen", "rejected")
    if not found and row["chosen"] == row["rejected"]:
        return "chosen and rejected are equal"
    return found


def _answers_problem(row: Row, *keys: str) -> str | None:
    """Of a prompt, which is the first of `keys`, and its answers."""
    for key in keys:
        if key not in row:
            return f"{key} is missing"
        is_list = isinstance(row[key], list)
        found = _messages_problem(key, row[key]) if is_list else _text_problem(key, row[key])
        if found:
            return found
    if len({isinstance(row[key], list) for key in keys}) > 1:
        return f"{', '.join(keys)} must all be strings or all be lists of messages"
    return next(filter(None, (_end_problem(key, row[key]) for key in keys[1:])), None)


def _messages_problem(key: str, messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"{key} is not a list of messages"
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"{key}[{i}] has no role of {', '.join(sorted(ROLES))}"
        speechless = message.get("tool_calls") or message["role"] == "tool"
        found = _text_problem(f"{key}[{i}].content", message.get("content"))
        if found and not (speechless and message.get("content") == ""):
            return found
    return None


def _end_problem(key: str, answer: Any) -> str | None:
    is_answered = isinstance(answer, str) or answer[-1]["role"] == "assistant"
    return None if is_answered else f"{key}: the last message is not the assistant's"


def _text_problem(key: str, text: Any) -> str | None:
    if not isinstance(text, str):
        return f"{key} is not text"
    return None if text.strip() else f"{key} is empty"
