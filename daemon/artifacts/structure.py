"""L2: the GGUF is a whole, well-formed file by our own parser."""

from __future__ import annotations

from daemon.artifacts.gguf import Gguf, GgufError
from daemon.artifacts.levels import STRUCTURE, Level, failed, passed


def judge(parsed: Gguf | GgufError) -> Level:
    """L2 of what the parser gave, or raised."""
    if isinstance(parsed, GgufError):
        return failed(STRUCTURE, str(parsed))
    numbers = {
        "architecture": parsed.architecture[:64],
        "tensors": len(parsed.tensors),
        "metadata_keys": len(parsed.metadata),
        "data_offset": parsed.data_offset,
    }
    return passed(STRUCTURE, numbers)
