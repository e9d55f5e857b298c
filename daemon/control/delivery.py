"""Whether a job's files can be rebuilt on this computer, and which way home its job file comes to."""

from __future__ import annotations

import shutil
from pathlib import Path

from daemon import platform
from daemon.control.jobfile import hub_name, model_folder
from daemon.control.world import World
from daemon.domain import deliver, units
from daemon.domain.deliver import DOWNLOAD, Delivery, WayHome
from daemon.domain.estimate import Estimate
from daemon.domain.market import Offer
from daemon.domain.spec import JobSpec


async def problem(world: World, spec: JobSpec, folder: Path, expected: Estimate, revision: str | None) -> str:
    """Why nothing can be rebuilt here for a spec written in `folder`; '' when it can. `revision`: of a hub model."""
    if not any(deliver.is_exact(quant) for quant in spec.export.gguf):
        return "export.gguf names only K-quants, whose bytes differ from computer to computer"
    if lacking := await world.workshop.problem():
        return lacking
    needed = deliver.memory_needed(expected.parameters)
    if (memory := platform.memory_available()) < needed:
        return f"{units.show_bytes(memory)} of memory free, {units.show_bytes(needed)} needed to rebuild"
    fetches = model_folder(spec, folder) is None and not _is_here(world, spec, revision)
    room = expected.model_bytes + deliver.needed_bytes(spec, expected.parameters, fetches_base=fetches)
    models = world.settings.paths.models
    free = shutil.disk_usage(next(place for place in (models, *models.parents) if place.exists())).free
    if free < room:
        return f"{models}: {units.show_bytes(free)} free, {units.show_bytes(room)} needed to rebuild"
    return ""


async def choose(
    world: World,
    spec: JobSpec,
    folder: Path,
    expected: Estimate,
    *,
    measured: float | None,
    revision: str | None,
    offer: Offer | None = None,
) -> tuple[Delivery, tuple[WayHome, WayHome]]:
    """The way home, and what either costs on `offer`. `measured`: Mbit/s of the last model's way home."""
    line = deliver.line_of(spec, measured)
    both = deliver.ways(spec, expected, line, offer)
    why = "" if spec.deliver == DOWNLOAD else await problem(world, spec, folder, expected, revision)
    known = "as limits.line says" if spec.limits.line == line else "as measured" if measured else "assumed"
    return deliver.choose(spec.deliver, why, *both, f"at {line:.0f} Mbit/s, {known}"), both


def _is_here(world: World, spec: JobSpec, revision: str | None) -> bool:
    """Whether an earlier job's rebuild fetched the weights; an unfinished fetch goes on, and takes its room anyway."""
    return revision is not None and world.workshop.base_root(hub_name(spec.model)[0], revision).exists()
