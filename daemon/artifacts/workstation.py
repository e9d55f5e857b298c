"""Before anything is rented: can this computer store the model and verify it?

The verifier is not asked whether it is installed but made to work: it loads and runs a tiny GGUF in the same fenced
child that will judge the real one.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from daemon import platform
from daemon.artifacts import behaviour, child, tiny
from daemon.artifacts.verify import Depth
from daemon.domain.units import show_bytes

INSTALL = "pip install 'homeport[verify]'"
REBUILD = "pip install --force-reinstall --no-cache-dir 'homeport[verify]'"  # compiled for another processor, mostly


@dataclass(frozen=True)
class Objection:
    """Why this computer will not do, and the command or setting that mends it."""

    problem: str
    mend: str


async def check(models: Path, *, needed: int, largest: int, depth: Depth) -> list[Objection]:
    """Everything that stands in the way of receiving `needed` bytes under `models`, the largest GGUF being `largest`.

    Empty when nothing does. At depth "hash" no model is loaded, so only the disk is checked.
    """
    objections = _disk(models, needed)
    if depth == "full":
        objections += _memory(largest) + await _verifier()
    return objections


def _disk(models: Path, needed: int) -> list[Objection]:
    existing = next(folder for folder in (models, *models.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free >= needed:
        return []
    problem = f"{models}: {show_bytes(free)} free, {show_bytes(needed)} needed for the model"
    return [
        Objection(problem, f"free {show_bytes(needed - free)} there, or set models_dir in config.toml to a larger disk")
    ]


def _memory(largest: int) -> list[Objection]:
    available, needed = platform.memory_available(), behaviour.least_memory(largest)
    if available >= needed:
        return []
    problem = (
        f"{show_bytes(available)} of memory free, {show_bytes(needed)} needed to load the model for the behaviour check"
    )
    return [Objection(problem, "close other programs, or accept less in the job file: verify: {level: hash}")]


async def _verifier() -> list[Objection]:
    if package := child.missing():
        return [Objection(f"the behaviour check needs {package}, which is not installed", INSTALL)]
    with tempfile.TemporaryDirectory(prefix="homeport-") as folder:
        path = Path(folder) / "tiny.gguf"
        tiny.write_tiny(path)
        ids = tuple(b"ab")
        asked = child.Request(
            gguf=str(path),
            texts=("ab",),
            ends=(tiny.END,),
            prompts=(child.Ask(ids, 1, (((0, 1),),)),),
            greedy_ids=ids,
            greedy_tokens=2,
            threads=1,
        )
        try:
            reply = await child.ask(asked, path.stat().st_size)
        except child.ChildFailed as error:
            return [Objection(f"the behaviour check does not run here: {error}", REBUILD)]
    if reply.prompts[0][0] is None:
        return [Objection("the behaviour check computes nonsense on this processor", REBUILD)]
    return []
