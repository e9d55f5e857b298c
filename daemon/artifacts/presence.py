"""L0: every file of the manifest is here, a plain file of exactly the promised size, and that size is plausible."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from daemon import platform
from daemon.artifacts import sizes
from daemon.artifacts.layout import local_name
from daemon.artifacts.levels import PRESENCE, Level, failed, passed
from remote_payload.contract import MAX_FILE_SIZE, MAX_FILES, ArtifactFile, ContractError, Manifest, Role

DENSE = 0.99  # share of a GGUF that must have been written: a disk may keep rows of zeros as holes of its own accord


def check(folder: Path, manifest: Manifest, table: sizes.Shapes | None) -> Level:
    """L0. `table` is what the base model predicts, None when its architecture is not predicted."""
    problem = _names_problem(manifest)
    if problem:
        return failed(PRESENCE, problem)
    numbers: dict[str, Any] = {"files": len(manifest.files), "bytes": sum(f.size for f in manifest.files)}
    for file in manifest.files:
        problem = _file_problem(folder, file)
        if problem:
            return failed(PRESENCE, f"{file.path}: {problem}", numbers)
    for file in ggufs(manifest):
        numbers[str(file.quant)], problem = _plausible(file, table)
        if problem:
            return failed(PRESENCE, f"{file.path}: {problem}", numbers)
    return passed(PRESENCE, numbers)


def size_lines(levels: Sequence[Level]) -> Iterator[str]:
    """For a person, one line a GGUF: its bytes, what the base model's shape gives, and the plain floor where one is."""
    numbers = next((level.numbers for level in levels if level.name == PRESENCE), {})
    for quant, found in numbers.items():
        if not isinstance(found, dict):
            continue
        line = f"{quant} has {found['bytes']:,} bytes"
        if found["predicted_tensor_bytes"] is not None:
            line += f"; the base model's shape gives {found['predicted_tensor_bytes']:,} and a header"
        if found["floor_bytes"] is not None:
            over = "more" if found["above_floor"] else "NOT more"
            line += f"; {over} than the {found['floor_bytes'] / 1e9:g} GB that one of a 7B or 8B model must have"
        yield line


def ggufs(manifest: Manifest) -> list[ArtifactFile]:
    return [file for file in manifest.files if file.role is Role.GGUF]


def _names_problem(manifest: Manifest) -> str:
    """Objections to the manifest itself, before anything on disk is looked at."""
    if not 0 < len(manifest.files) <= MAX_FILES:
        return f"the manifest names {len(manifest.files)} files"
    if not ggufs(manifest):
        return "the manifest names no GGUF"
    names: set[str] = set()
    for file in manifest.files:
        try:
            name = str(local_name(file.path)).casefold()  # some file systems hold both cases to be one file
        except ContractError as error:
            return str(error)
        if name in names:
            return f"{file.path}: named twice"
        if not 0 <= file.size <= MAX_FILE_SIZE:
            return f"{file.path}: a size of {file.size} bytes"
        if (file.role is Role.GGUF) != name.endswith(".gguf"):
            return f"{file.path}: role {file.role} does not fit the name"
        names.add(name)
    return ""


def _file_problem(folder: Path, file: ArtifactFile) -> str:
    """Why the file on disk is not a plain, dense file of the promised size; '' when it is."""
    path = folder
    for part in local_name(file.path).parts:
        path = path / part
        try:
            status = path.lstat()
        except FileNotFoundError:  # which is an answer here
            return "missing"
        if stat.S_ISLNK(status.st_mode):
            return f"{path.name} is a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size != file.size:
        return f"{status.st_size} bytes on disk, the manifest says {file.size}"
    written = platform.bytes_written(path) if file.role is Role.GGUF else None
    if written is not None and written < DENSE * file.size:
        return f"only {written} of {file.size} bytes are on disk: the file has holes"
    return ""


def _plausible(file: ArtifactFile, table: sizes.Shapes | None) -> tuple[dict[str, Any], str]:
    """The promised size beside the predicted one and the plain floor, and the objection these give."""
    quant = sizes.QUANTS.get(file.quant or "")
    predicted = sizes.data_bytes(table, quant) if table is not None and quant else None
    floor = sizes.floor(table, file.quant or "")
    numbers: dict[str, Any] = {"bytes": file.size, "predicted_tensor_bytes": predicted, "floor_bytes": floor}
    if floor is not None:
        numbers["above_floor"] = file.size > floor
        if file.size <= floor:
            return numbers, f"{file.size} bytes is not above the floor of {floor} for a 7B or 8B {file.quant}"
    if predicted is not None and not predicted < file.size <= predicted + sizes.HEADER_LIMIT:
        return numbers, f"{file.size} bytes cannot be a {file.quant} of this base: its tensors take {predicted}"
    return numbers, ""
