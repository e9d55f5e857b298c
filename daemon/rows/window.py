"""A moving window over a JSON text too large to hold: whitespace, single characters and whole values, in order."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any, BinaryIO

from daemon.errors import SpecError

MAX_ROW = 64 << 20  # characters of one value; a "row" larger than this is a file in the wrong form
READ = 1 << 20  # bytes, at first
BLANK = " \t\r\n"


class Window:
    """Reads `file` from its beginning. `line` is where the next character stands. Raises SpecError with the line."""

    def __init__(self, path: Path, file: BinaryIO, decoder: json.JSONDecoder) -> None:
        self.line = 1
        self._path, self._file, self._json = path, file, decoder
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not blank, "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                character = self._text[self._at]
                if character not in BLANK:
                    return character
                self._forward(self._at + 1)
            if self._ended:
                return ""
            self._more(READ)

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self.broken(f"expected {character!r}")
        self._forward(self._at + 1)

    def value(self) -> Any:
        """The next value, however far it reaches: the window grows until it is whole, or too large to be a row."""
        self.peek()
        while True:
            try:
                found, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._at > MAX_ROW or isinstance(error, RecursionError):
                    raise self.broken(error) from error
            else:
                if end < len(self._text) or self._ended:
                    self._forward(end)
                    return found
            self._more(max(READ, len(self._text) - self._at))

    def broken(self, why: str | Exception) -> SpecError:
        line = self.line
        if isinstance(why, json.JSONDecodeError):
            line, why = line + self._text.count("\n", self._at, why.pos), why.msg
        return SpecError([f"{self._path}:{line}: is not JSON ({why})"])

    def _forward(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self, size: int) -> None:
        raw = self._file.read(size)
        try:
            text = self._utf8.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n", self._at) + raw.count(b"\n", 0, error.start)
            raise SpecError([f"{self._path}:{line}: is not UTF-8 text"]) from error
        self._ended = not raw
        self._text, self._at = self._text[self._at :] + text, 0
