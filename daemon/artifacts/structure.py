"""L2: the GGUF is a whole, well-formed file by our own parser."""

from __future__ import annotations

from pathlib import Path

from daemon.artifacts import gguf
from daemon.artifacts.levels import STRUCTURE, Level, failed, passed


def check(path: Path) -> tuple[Level, gguf.Gguf | None]:
    """L2, and the parsed file when it passed."""
    try:
        parsed = gguf.read(path)
    except gguf.GgufError as error:
        return failed(STRUCTURE, str(error)), None
    numbers = {
        "architecture": parsed.architecture,
        "tensors": len(parsed.tensors),
        "metadata_keys": len(parsed.metadata),
        "data_offset": parsed.data_offset,
    }
    return passed(STRUCTURE, numbers), parsed
