"""A job file on its way to a job: read and checked, with the data and the earlier adapters that it names.

No job is stored and nothing is spent. The rows alone are written, in the canonical form, into our state folder.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daemon.control import adapters
from daemon.control.adapters import Adapter
from daemon.control.homecoming import base_identity
from daemon.control.jobfile import hub_name, model_folder
from daemon.control.world import World
from daemon.domain.spec import JobSpec, parse
from daemon.errors import SpecError
from daemon.rows import canonical
from daemon.rows.canonical import RowFile
from daemon.rows.shapes import Kind as DataKind
from daemon.settings import Settings


@dataclass(frozen=True)
class Submission:
    """What a job file in `folder` asks for, and what it names on this computer."""

    spec: JobSpec
    text: str
    folder: Path
    files: list[RowFile]
    earlier: dict[str, Adapter]

    @property
    def rows(self) -> dict[str, int]:
        return _rows(self.files)

    async def revision(self, settings: Settings) -> str | None:
        """The hub commit of the base model, its identity fetched now: verifying needs no network then."""
        if model_folder(self.spec, self.folder) is not None:
            return None
        repo, revision = hub_name(self.spec.model)
        return (await base_identity(repo, revision, settings)).revision

    def columns(self, request_id: str, revision: str | None) -> dict[str, Any]:
        """Those of the job's row that its file decides."""
        data = {file.kind: _data_set(file) for file in self.files}
        earlier = {key: asdict(adapter) for key, adapter in self.earlier.items()}  # as adapters.stored reads it
        return {
            "name": self.spec.name,
            "request_id": request_id,
            "spec_text": self.text,
            "spec_json": self.spec.canonical_json(),
            "spec_sha256": self.spec.sha256,
            "spec_dir": str(self.folder),
            "model_revision": revision,
            "data_json": json.dumps(data | earlier),
        }


async def read(world: World, text: str, source: str, folder: Path) -> Submission:
    """Everything that can be checked here. Raises SpecError naming file and line, NoSuchJob."""
    spec = parse(text, source=source, base=folder)
    files = await asyncio.to_thread(_files, spec, source, folder, world.settings.paths.data)
    local = model_folder(spec, folder)
    model = local.name if local else spec.model
    earlier = await asyncio.to_thread(adapters.find, spec, source, folder, model, world.database)
    return Submission(spec, text, folder, files, earlier)


def _files(spec: JobSpec, source: str, folder: Path, kept: Path) -> list[RowFile]:
    """Every data set of the spec, read, checked and converted."""
    kinds: tuple[DataKind, ...] = ("sft", "dpo", "eval")
    named = {kind: folder / Path(spec.data[kind]).expanduser() for kind in kinds if kind in spec.data}
    files = [canonical.read(path, kind, kept) for kind, path in named.items()]
    problems = [problem for file in files for problem in file.problems]
    counted = _rows(files)
    for kind, expected in (("sft", spec.integration.sft_rows), ("dpo", spec.integration.dpo_rows)):
        rows = counted.get(kind, 0)
        if not problems and expected is not None and expected != rows:
            problems.append(f"{source}: integration.{kind}_rows: {expected} expected, the data has {rows}")
    if problems:
        raise SpecError(problems, hint=f"jobctl data-check {source}")
    return files


def _rows(files: list[RowFile]) -> dict[str, int]:
    return {file.kind: file.survey.rows for file in files}


def _data_set(file: RowFile) -> dict[str, Any]:
    """As jobfile.DataSet reads it."""
    if file.canonical is None:
        raise ValueError(f"{file.path} was not written")
    return {"sha256": file.canonical.sha256, "rows": file.canonical.rows, "original_sha256": file.sha256}
