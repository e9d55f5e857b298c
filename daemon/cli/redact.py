"""Takes out of a text what must not leave this computer: secrets, training rows, and whose home it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from daemon import settings
from daemon.errors import HomeportError
from daemon.service.program import PROXIES
from daemon.settings import Settings

VARIABLES = ("VAST_API_KEY", "HF_TOKEN", "WANDB_API_KEY", *PROXIES)
BLOCK = 24  # characters: of a row, every line of so many and every excerpt of twice as many are found
STRING = re.compile(r'"((?:[^"\\]|\\.)*)')  # in JSON, ended or not
SHORTEST = 8  # a value that is shorter is no secret, and would be found everywhere


def known_secrets(loaded: Settings) -> set[str]:
    """Every secret value of this installation that a text could hold, whatever it is called there."""
    found = {os.environ.get(name, "") for name in VARIABLES}
    found.add(loaded.notify_url or "")
    with contextlib.suppress(HomeportError):  # there is no key, so none has to be hidden
        found.add(settings.api_key(loaded.paths).value)
    for file in (loaded.paths.key_file, loaded.paths.environment_file, loaded.paths.address):
        if file.exists():
            found |= set(_values(file.read_text(encoding="utf-8", errors="replace")))
    if loaded.paths.ssh_key.exists():
        found |= {line for line in loaded.paths.ssh_key.read_text(errors="replace").splitlines() if "-----" not in line}
    return {value for value in found if len(value) >= SHORTEST}


def _values(text: str) -> Iterator[str]:
    """Of a file of bare values, NAME=VALUE lines or one JSON object."""
    try:
        raw = json.loads(text)
        yield from (value for value in raw.values() if isinstance(value, str))
        return
    except (ValueError, AttributeError):  # not JSON, or no object: lines
        pass
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if name.lower() == "no_proxy":
            continue  # hosts, such as localhost
        if not equals or any(word in name.lower() for word in ("key", "token", "proxy")):
            yield (value if equals else line).strip().strip("'\"")


class Redactor:
    """`text` gives back what may be shown. `rows`: the job's canonical data files."""

    def __init__(self, secrets: Iterable[str], rows: Iterable[Path]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)  # one may be part of another
        self._home = str(Path.home())
        self._rows = list(rows)

    def texts(self, texts: dict[str, str]) -> dict[str, str]:
        """All texts of one bundle at once: the data is read only once, however long it is."""
        windows = {
            line[at : at + BLOCK] for text in texts.values() for line in text.splitlines()
            for at in range(len(line) - BLOCK + 1)
        }  # fmt: skip
        seen = {block for path in self._rows for block in _blocks(path) if block in windows}
        return {name: self._text(text, seen) for name, text in texts.items()}

    def _text(self, text: str, rows: set[str]) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        lines = text.replace(self._home, "~").splitlines()
        if rows:
            lines = ["[holds a training row]" if any(row in line for row in rows) else line for line in lines]
        return "\n".join(lines) + "\n"


def _blocks(path: Path) -> Iterator[str]:
    """Every whole block of every line in the rows of a JSON lines file, as it is and as JSON writes it."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            for text in (part for string in _strings(_row(line)) for part in string.splitlines()):
                for form in {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}:
                    yield from (form[at : at + BLOCK] for at in range(0, len(form) - BLOCK + 1, BLOCK))


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # cut off by a full disk: what is left of it is as private
        return [line, *map(_unescaped, STRING.findall(line))]


def _unescaped(string: str) -> str:
    try:
        return str(json.loads(f'"{string}"', strict=False))
    except ValueError:  # cut off within an escape
        return string


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
