"""Which Python and which libraries train on this machine. Standard library only."""

from __future__ import annotations

import importlib.metadata
import platform

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def installed() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}
