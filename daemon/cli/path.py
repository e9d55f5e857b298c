"""Paths as the person typed them: what goes wrong with one is said in a line that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from daemon.errors import SpecError

LARGEST = 1 << 20  # characters of a job file: some thousand are usual, and the daemon takes four MiB


def text_of(file: Path) -> str:
    """A job file as it stands. Raises SpecError."""
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(LARGEST + 1)
    except OSError as error:
        raise SpecError([f"{file}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SpecError([f"{file}: is not UTF-8 text"]) from error
    if len(text) > LARGEST:
        raise SpecError([f"{file}: is larger than 1 MiB: that is no job file"])
    return text


def expanded(path: str) -> Path:
    """With ~ and ~name as a shell has them. Raises UsageError for somebody who is not known here."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise click.UsageError(f"{path}: {error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk says of no file that it is full: inside, it is `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
