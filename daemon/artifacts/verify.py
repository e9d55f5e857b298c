"""Verification of a downloaded artifact set: L0 to L5 in order, ending at the first that fails.

Everything is read from the files under `folder`; nothing is believed because the box said it, except the reference
answers, which no computer but the box could have made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daemon.artifacts import behaviour, hashing, identity, presence, scan, sizes, structure
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.gguf import Gguf
from daemon.artifacts.layout import local_path
from daemon.artifacts.levels import BEHAVIOUR, IDENTITY, NUMBERS, STRUCTURE, Level, failed, not_run
from daemon.artifacts.reference import BadReference
from daemon.artifacts.reference import read as read_reference
from remote_payload.contract import ArtifactFile, Manifest, Role

Depth = Literal["full", "hash"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What was concluded. `passed` at depth "hash" does not claim L5, and `levels` says so. `sample` is greedy text."""

    passed: bool
    depth: Depth
    levels: tuple[Level, ...]
    sample: str = ""

    @property
    def problem(self) -> str:
        """The first failing level and why; '' when passed."""
        return next((f"{level.name}: {level.problem}" for level in self.levels if not _good(level, self.depth)), "")

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(warning for level in self.levels for warning in level.warnings)


async def verify(folder: Path, manifest: Manifest, base: BaseIdentity, depth: Depth, say: Say) -> Report:
    """Check every file of `manifest` under `folder`. May be called again; changes nothing.

    `depth` "full" requires all six levels; "hash" requires L0 to L3 and, where numpy is present, L4, and runs no L5.
    `say` is given one line as each level ends. Raises SpecError for unreadable base files, OSError as it comes.
    """
    run = _Run(folder, manifest, base)
    levels: list[Level] = []
    for check in (run.presence, run.hashes, run.structure, run.identity, run.numbers):
        levels.append(await asyncio.to_thread(check))
        say(_line(levels[-1]))
        if not _good(levels[-1], depth):
            return Report(False, depth, tuple(levels))
    if depth == "hash":
        levels.append(not_run(BEHAVIOUR, "the job asks for verify level hash"))
        say(_line(levels[-1]))
        return Report(True, depth, tuple(levels))
    last, sample = await run.behaviour()
    say(_line(last))
    return Report(last.passed, depth, (*levels, last), sample)


class _Run:
    """One verification: the levels as methods, each over every GGUF of the manifest."""

    def __init__(self, folder: Path, manifest: Manifest, base: BaseIdentity) -> None:
        self.folder, self.manifest, self.base = folder, manifest, base
        self.ggufs = presence.ggufs(manifest)
        self.parsed: dict[str, Gguf] = {}

    def presence(self) -> Level:
        return presence.check(self.folder, self.manifest, sizes.shapes(self.base.config))

    def hashes(self) -> Level:
        return hashing.check(self.folder, self.manifest.files)

    def structure(self) -> Level:
        levels = []
        for file in self.ggufs:
            level, parsed = structure.check(self._path(file))
            levels.append(level)
            if parsed is not None:
                self.parsed[file.path] = parsed
        return self._together(STRUCTURE, levels)

    def identity(self) -> Level:
        levels = [identity.check(self.parsed[file.path], self.base, file.quant or "") for file in self.ggufs]
        return self._together(IDENTITY, levels)

    def numbers(self) -> Level:
        return self._together(NUMBERS, [scan.check(self._path(file), self.parsed[file.path]) for file in self.ggufs])

    async def behaviour(self) -> tuple[Level, str]:
        """L5 and the first file's text."""
        found = [file for file in self.manifest.files if file.role is Role.REFERENCE]
        if len(found) != 1:
            return failed(BEHAVIOUR, f"the manifest names {len(found)} reference files"), ""
        try:
            reference = await asyncio.to_thread(read_reference, self._path(found[0]))
        except BadReference as error:
            return failed(BEHAVIOUR, f"{found[0].path}: {error}"), ""
        by_box = {quality.quant: quality for quality in self.manifest.quality}
        results = [
            await behaviour.check(
                self._path(file), file.size, reference, file.quant or "", by_box.get(file.quant or "")
            )
            for file in self.ggufs
        ]
        return self._together(BEHAVIOUR, [result.level for result in results]), results[0].sample

    def _path(self, file: ArtifactFile) -> Path:
        return local_path(self.folder, file.path)

    def _together(self, name: str, levels: list[Level]) -> Level:
        """One level over all GGUFs: their numbers by quantisation, every problem and warning."""
        numbers: dict[str, Any] = {str(f.quant): level.numbers for f, level in zip(self.ggufs, levels, strict=True)}
        problems = [f"{f.path}: {level.problem}" for f, level in zip(self.ggufs, levels, strict=True) if level.problem]
        warnings = tuple(warning for level in levels for warning in level.warnings)
        ran = all(level.ran for level in levels)
        return Level(name, not problems, numbers, "; ".join(problems), warnings, ran)


def _good(level: Level, depth: Depth) -> bool:
    """Whether verification may go on after this level; at depth "hash" L4 and L5 may be missing, but not wrong."""
    return level.passed or (depth == "hash" and not level.ran and level.name in (NUMBERS, BEHAVIOUR))


def _line(level: Level) -> str:
    if level.passed:
        return f"{level.name}: passed"
    return f"{level.name}: {level.problem}"
