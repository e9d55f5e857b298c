"""Earlier adapters that a job uses: found at submit, stored with the job, brought to every machine of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daemon.artifacts import adapter as adapters
from daemon.box.upload import Upload
from daemon.domain.records import Job
from daemon.domain.spec import JobSpec
from daemon.errors import SpecError
from daemon.store import artifacts, jobs
from daemon.store.database import Database
from daemon.store.readonly import connection, resolve
from remote_payload.contract import AdapterSource

REMOTE = "adapters"  # under the box's root, one folder an adapter by the hash of its weights
IN_MODEL_FOLDER = "adapter"
KEYS = ("start_from", "compare_to")


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder on this computer as it was at submit; `files`: name -> sha256."""

    name: str  # what the person wrote
    folder: str
    files: dict[str, str]

    @property
    def source(self) -> AdapterSource:
        """As the box knows it."""
        sha256 = self.files[adapters.WEIGHTS]
        return AdapterSource(f"{REMOTE}/{sha256}", sha256, self.name)

    def uploads(self) -> Iterator[Upload]:
        """Raises OSError for a file that is gone."""
        for name, sha256 in self.files.items():
            path = Path(self.folder) / name
            yield Upload(path, f"{self.source.path}/{name}", sha256, path.stat().st_size)


def find(spec: JobSpec, source: str, folder: Path, model: str, database: Database) -> dict[str, Adapter]:
    """The adapters that the spec names, by what it wants of them.

    References are relative to `folder`; `model` is the base model's name as the box hears it. Raises SpecError naming
    the key, and NoSuchJob for a reference that is neither folder nor job.
    """
    found = {}
    for key, reference in spec.adapters.items():
        place = _place(reference, folder, database)
        goes_on = spec.lora if key == "start_from" else None
        if objections := list(adapters.objections(place, model, goes_on)):
            raise SpecError([f"{source}: {key}: {reference}: {objection}" for objection in objections])
        found[key] = Adapter(reference, str(place), adapters.hashes(place))
    return found


def stored(job: Job) -> dict[str, Adapter]:
    """By what the job wants of them."""
    kept = json.loads(job.data_json or "{}")
    return {key: Adapter(**kept[key]) for key in KEYS if key in kept}


def _place(reference: str, base: Path, database: Database) -> Path:
    """The PEFT folder that `reference` means: a folder, a model folder with one in it, or the model of a job."""
    try:
        place = (base / Path(reference).expanduser()).resolve()
        is_folder = place.is_dir()
    except (OSError, RuntimeError) as error:  # a name that no folder can have, or ~somebody who is not known here
        raise SpecError([f"{reference}: {error}"]) from error
    if not is_folder:
        with connection(database.path) as db:
            job = resolve(db, reference)
        with database.read() as c:
            receipt = artifacts.current_receipt(c, jobs.get(c, job))
        if receipt is None:
            raise SpecError([f"job {job} has no verified model yet"], hint=f"jobctl show {job}")
        place = Path(receipt.folder)
    inner = place / IN_MODEL_FOLDER
    return inner if inner.is_dir() else place
