"""Verification of an artifact set on this disk: L0 to L5 in order, ending at the first that fails.

Everything is read from the files under `folder`; nothing is believed because the box said it, except the reference
answers, which no computer but the box could have made. A GGUF is read once for L1 and L4: the same pass hashes it and
looks at its numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from daemon.artifacts import behaviour, gguf, hashing, identity, presence, sizes, structure
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.gguf import Gguf, GgufError
from daemon.artifacts.layout import local_path
from daemon.artifacts.levels import BEHAVIOUR, IDENTITY, NUMBERS, STRUCTURE, Level, failed, not_run
from daemon.artifacts.reference import BadReference
from daemon.artifacts.reference import read as read_reference
from daemon.artifacts.scan import Scan
from remote_payload.contract import ArtifactFile, Manifest, Role

# Which levels must pass. "hash": the spec asks for no L5. "L4" and "L3": a person accepted that what is above cannot
# run here; it is tried all the same, and what runs must pass. "any": looked at again, as far as that goes (scrub.py).
Depth = Literal["full", "L4", "L3", "hash", "any"]
MAY_BE_MISSING: dict[Depth, tuple[str, ...]] = {
    "full": (),
    "L4": (BEHAVIOUR,),
    "L3": (NUMBERS, BEHAVIOUR),
    "hash": (NUMBERS, BEHAVIOUR),
    "any": (IDENTITY, NUMBERS, BEHAVIOUR),
}
Say = Callable[[Level], None]


@dataclass(frozen=True)
class Report:
    """What was concluded. Below depth "full" `passed` does not claim what did not run, and `levels` says so.

    `sample` is greedy text of the first file; `hashed` what the files were when they were read (`_Run.stamps`).
    """

    passed: bool
    depth: Depth
    levels: tuple[Level, ...]
    sample: str = ""
    hashed: tuple[tuple[int, int, int], ...] = ()

    @property
    def problem(self) -> str:
        """The first failing level and why; '' when passed."""
        return next((f"{level.name}: {level.problem}" for level in self.levels if not _good(level, self.depth)), "")

    @property
    def stopped_short(self) -> bool:
        """Nothing was found wrong; a level could not run here."""
        return not self.passed and not self.levels[-1].ran

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(warning for level in self.levels for warning in level.warnings)


async def verify(folder: Path, manifest: Manifest, base: BaseIdentity | None, depth: Depth, say: Say) -> Report:
    """Check every file of `manifest` under `folder`. May be called again; changes nothing. Without `base` no L3 is run.

    `say` is given each level as it ends, before the next begins: whoever stores it there loses none to a crash. Where
    nothing was missing the report is of depth "full", whatever was asked. Raises SpecError for unreadable base files,
    OSError as it comes.
    """
    run = _Run(folder, manifest, base)
    levels: list[Level] = []
    for check in (run.presence, run.hashes, run.structure, run.identity, run.numbers):
        levels.append(await asyncio.to_thread(check))
        say(levels[-1])
        if not _good(levels[-1], depth):
            return Report(False, depth, tuple(levels))
    if depth == "hash":
        last, sample = not_run(BEHAVIOUR, "the job asks for verify level hash"), ""
    else:
        last, sample = await run.behaviour()
    if _good(last, depth) and run.stamps() != run.hashed:
        last = failed(BEHAVIOUR, "a file was changed after it was hashed")
    say(last)
    levels.append(last)
    reached: Depth = "full" if all(level.passed for level in levels) else depth
    return Report(_good(last, depth), reached, tuple(levels), sample, tuple(run.hashed))


class _Run:
    """One verification: the levels as methods, each over every GGUF of the manifest."""

    def __init__(self, folder: Path, manifest: Manifest, base: BaseIdentity | None) -> None:
        self.folder, self.manifest, self.base = folder, manifest, base
        self.ggufs = presence.ggufs(manifest)
        self.parsed: dict[str, Gguf | GgufError] = {}
        self.scans: dict[str, Scan] = {}
        self.hashed: list[tuple[int, int, int]] = []  # `stamps` when the hashing began

    def stamps(self) -> list[tuple[int, int, int]]:
        """Inode, size in bytes and modification time in ns of every file that is there."""
        found = (path.lstat() for path in map(self._path, self.manifest.files) if path.exists())
        return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in found]

    def presence(self) -> Level:
        return presence.check(self.folder, self.manifest, sizes.shapes(self.base.config) if self.base else None)

    def hashes(self) -> Level:
        """L1; the same read feeds L4, for which the structure has to be known. Our own parser may look at anything."""
        self.hashed = self.stamps()
        for file in self.ggufs:
            try:
                self.parsed[file.path] = parsed = gguf.read(self._path(file))
                self.scans[file.path] = Scan(parsed)
            except GgufError as error:
                self.parsed[file.path] = error
            except ImportError:  # numpy is missing, which L4 says
                continue
        return hashing.check(self.folder, self.manifest.files, self.scans)

    def structure(self) -> Level:
        return self._together(STRUCTURE, [structure.judge(self.parsed[file.path]) for file in self.ggufs])

    def identity(self) -> Level:
        if self.base is None:
            return not_run(IDENTITY, "the base model's files are not here")
        levels = [identity.check(self._parsed(file), self.base, file.quant or "") for file in self.ggufs]
        return self._together(IDENTITY, levels)

    def numbers(self) -> Level:
        if not self.scans:
            return not_run(NUMBERS, "numpy is not installed")
        return self._together(NUMBERS, [self.scans[file.path].level() for file in self.ggufs])

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

    def _parsed(self, file: ArtifactFile) -> Gguf:
        """After L2: every file has passed it."""
        found = self.parsed[file.path]
        assert isinstance(found, Gguf)  # noqa: S101
        return found

    def _together(self, name: str, levels: list[Level]) -> Level:
        """One level over all GGUFs: their numbers by quantisation, every problem and warning.

        Beside a file that failed, one that could not be looked at does not make it "not run".
        """
        numbers: dict[str, Any] = {str(f.quant): level.numbers for f, level in zip(self.ggufs, levels, strict=True)}
        problems = [f"{f.path}: {level.problem}" for f, level in zip(self.ggufs, levels, strict=True) if level.problem]
        warnings = tuple(warning for level in levels for warning in level.warnings)
        ran = all(level.ran for level in levels) or any(level.ran and level.problem for level in levels)
        return Level(name, not problems, numbers, "; ".join(problems), warnings, ran)


def _good(level: Level, depth: Depth) -> bool:
    """Whether verification may go on after this level: what may be missing may not be wrong."""
    return level.passed or (not level.ran and level.name in MAY_BE_MISSING[depth])
