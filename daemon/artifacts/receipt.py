"""The receipt: what was verified, and how to tell at a glance that it is still the very same files.

Hashing gigabytes again just before a machine is destroyed would take minutes in which things can change. Inode, size
and modification time do not all stay the same when a file is replaced or written, except by somebody who sets the time
back or a disk that lies; so the first and the last bytes are read again too.
"""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daemon.artifacts import hashing
from daemon.artifacts.layout import local_name
from daemon.artifacts.verify import Depth, Report
from daemon.errors import HomeportError
from remote_payload.contract import ContractError, Manifest, checked_path

SCHEMA = "homeport.receipt/1"


class Changed(HomeportError):
    """What was verified is not what lies there now."""


@dataclass(frozen=True)
class ReceiptFile:
    """One file of the artifact set, `path` relative to the folder. `mtime_ns` as the file system says it."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str
    ends: str = ""  # hashing.ends; a receipt of before there was such a thing has none


@dataclass(frozen=True)
class Receipt:
    """What permits a destroy: the folder, the artifact set in it, and the verdict of every level as plain JSON."""

    folder: str  # absolute
    manifest_sha256: str
    level: Depth
    files: tuple[ReceiptFile, ...]
    levels: tuple[dict[str, Any], ...]
    data: tuple[dict[str, Any], ...] = ()  # what it was trained on: hashes, and how far the rows got
    scores: tuple[dict[str, Any], ...] = ()  # on held-out rows, beside other models
    base: dict[str, Any] | None = None  # the base model L3 was held against: {model, revision, without_opening}
    accepted: dict[str, Any] | None = None  # who accepted that a level could not run: {level, by, at}


def take(
    at: Path,
    final: Path,
    manifest: Manifest,
    manifest_sha256: str,
    report: Report,
    data: tuple[dict[str, Any], ...] = (),
    base: dict[str, Any] | None = None,
    accepted: dict[str, Any] | None = None,
) -> Receipt:
    """The receipt for a passed `report` over files that lie under `at` now and will lie under `final`.

    Renaming the folder changes nothing of what is kept. Raises ValueError for a report that did not pass, Changed for
    files that are not those which it read: it may have waited for the database since.
    """
    if not report.passed:
        raise ValueError(f"no receipt for an artifact set that failed: {report.problem}")
    files = []
    for promised in manifest.files:
        name = local_name(promised.path)
        status = (at / name).lstat()
        seen = status.st_size, status.st_mtime_ns, status.st_ino
        files.append(ReceiptFile(str(name), *seen, promised.sha256, hashing.ends(at / name)))
    if report.hashed and report.hashed != tuple((file.inode, file.size, file.mtime_ns) for file in files):
        raise Changed(f"a file in {at} was changed after it was hashed")
    levels, scores = (
        tuple(json.loads(json.dumps([asdict(one) for one in many])))  # as it will be read back
        for many in (report.levels, manifest.scores)
    )
    return Receipt(str(final), manifest_sha256, report.depth, tuple(files), levels, data, scores, base, accepted)


def recheck(receipt: Receipt) -> str | None:
    """What changed since the receipt was taken, None when nothing did. One lstat and two short reads a file."""
    for file in receipt.files:
        path = Path(receipt.folder, file.path)
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):  # which is an answer here
            return f"{path} is gone"
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no longer a plain file"
        if (status.st_size, status.st_mtime_ns, status.st_ino) != (file.size, file.mtime_ns, file.inode):
            return f"{path} was changed after it was verified"
        if file.ends and hashing.ends(path) != file.ends:
            return f"{path} has other bytes than when it was verified, though its time says nothing of it"
    return None


def dump(receipt: Receipt, job: str, attempt: int) -> str:
    """The text of receipt.json."""
    return json.dumps({"schema": SCHEMA, "job": job, "attempt": attempt} | asdict(receipt), indent=1) + "\n"


def load(text: str | bytes) -> Receipt:
    """Parse what `dump` wrote. Raises ContractError for anything else."""
    try:
        raw = json.loads(text)
        if raw["schema"] != SCHEMA:
            raise ContractError(f"receipt of schema {raw['schema']}, expected {SCHEMA}")
        files = tuple(ReceiptFile(**file) for file in raw["files"])
        for file in files:
            checked_path(file.path)
        levels = tuple(raw["levels"])
        data, scores = (tuple(raw.get(key, ())) for key in ("data", "scores"))  # older receipts say nothing of them
        fixed = raw["folder"], raw["manifest_sha256"], raw["level"], files, levels
        return Receipt(*fixed, data, scores, raw.get("base"), raw.get("accepted"))
    except (ValueError, KeyError, TypeError) as error:
        raise ContractError(f"not a receipt: {error}") from error
