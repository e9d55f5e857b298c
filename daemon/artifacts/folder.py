"""The model's own folder: `<models>/NAME/vN-<job>/`, put together beside it and moved there in one rename.

Killed at any point, it can be called again: until the rename the incoming folder is complete and only gains files that
are written whole; after it, the receipt inside says that the work is done.
"""

from __future__ import annotations

import hashlib
import re
import stat
from pathlib import Path
from typing import Any

from daemon import platform
from daemon.artifacts import card, receipt
from daemon.artifacts.hashing import sha256
from daemon.artifacts.layout import local_name, local_path
from daemon.artifacts.verify import Report
from daemon.errors import Refused
from remote_payload.contract import MAX_JSON_BYTES, ContractError, Manifest, Role, checked_path, load, write_whole

RECEIPT, MANIFEST, SUMS, JOB, README = "receipt.json", "manifest.json", "SHA256SUMS", "job.yaml", "README.md"
MODELFILE = "Modelfile"
CURRENT = "current"  # beside the versions: one line, the name of the newest
DAEMON_LOG = Path("logs") / "daemon.txt"
VERSION = re.compile(r"v(\d+)-(.+)")

READ_ONLY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
WRITABLE = READ_ONLY | stat.S_IWUSR


def settle(
    models: Path,
    incoming: Path,
    *,
    manifest_text: str,
    name: str,
    report: Report,
    spec_text: str,
    base_model: str,
    base: dict[str, Any] | None = None,
    data: tuple[dict[str, Any], ...] = (),
    accepted: dict[str, Any] | None = None,
    log_file: Path | None = None,
) -> receipt.Receipt:
    """Make `incoming`, which `report` has passed, the newest version of model `name`; returns its receipt.

    The manifest stays in the folder as it came, and the receipt names its sha256: the set can be verified again from
    the folder alone. `base` and `accepted` are as in the receipt. May be repeated. Raises Refused for a name that is no
    folder name, ValueError for a report that did not pass, receipt.Changed for files that are not those it read.
    """
    manifest, manifest_sha256 = load(Manifest, manifest_text), hashlib.sha256(manifest_text.encode()).hexdigest()
    done = settled(models, name=name, job=manifest.job, manifest_sha256=manifest_sha256)
    if done is None:
        final = _home(models, name) / f"v{_newest(_home(models, name)) + 1}-{manifest.job}"
        done = receipt.take(incoming, final, manifest, manifest_sha256, report, data, base, accepted)
        write_whole(incoming / MANIFEST, manifest_text)
        _write_texts(incoming, manifest, name, report, spec_text, base_model, data, log_file)
        _write_sums(incoming, manifest)
        write_whole(incoming / RECEIPT, receipt.dump(done, manifest.job, manifest.attempt))
        _freeze(incoming)
        final.parent.mkdir(parents=True, exist_ok=True)
        platform.sync_folder(models)
        incoming.rename(final)
        platform.sync_folder(final.parent)
        platform.sync_folder(models)
        write_whole(final.parent / CURRENT, f"{final.name}\n")
    return done


def settled(models: Path, *, name: str, job: str, manifest_sha256: str) -> receipt.Receipt | None:
    """The receipt of this very artifact set if it lies in its final place unchanged, durable by now, else None.

    Where it is the newest, CURRENT names it from now on: who renamed it may have died before that, too.

    To be asked before verifying: a crash between the rename and the database leaves no incoming folder to verify.
    """
    for folder in _home(models, name).glob(f"v*-{job}"):
        try:
            found = receipt.load((folder / RECEIPT).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ContractError):  # without a receipt of ours: not the one sought
            continue
        same = found.manifest_sha256 == manifest_sha256 and found.folder == str(folder)
        if same and receipt.recheck(found) is None:
            platform.sync_folder(folder.parent)  # who renamed it may have died before this
            platform.sync_folder(models)
            if folder.name.startswith(f"v{_newest(folder.parent)}-"):
                write_whole(folder.parent / CURRENT, f"{folder.name}\n")
            return found
    return None


def homes(models: Path, *, name: str, job: str) -> list[Path]:
    """The folders in which a model of the job was verified, by their receipts; whether these stand is not asked."""
    return [folder for folder in sorted(_home(models, name).glob(f"v*-{job}")) if (folder / RECEIPT).is_file()]


def set_aside(folder: Path) -> None:
    """Turn a model folder that is no longer what its receipt says back into its job's incoming folder.

    The next download then fetches only the chunks that are wrong. Where there already is an incoming folder, this one
    is put beside its place instead. A folder that is gone is no error.
    """
    match = VERSION.fullmatch(folder.name)
    if match is None or not folder.parent.is_dir():
        return
    if folder.is_dir():
        _rename_back(folder, job=match[2])
    platform.sync_folder(folder.parent)  # who moved it may have died, or met an error, before this
    platform.sync_folder(folder.parent.parent)


def _rename_back(folder: Path, *, job: str) -> None:
    incoming = folder.parent.parent / f".incoming-{job}"
    if incoming.exists():
        incoming = folder.with_name(f".lost-{folder.name}")
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(WRITABLE)
    (folder / RECEIPT).unlink(missing_ok=True)
    folder.rename(incoming)


def _home(models: Path, name: str) -> Path:
    """The folder of all versions of model `name`."""
    try:
        pure = checked_path(name)
    except ContractError as error:
        raise Refused(f"{name!r} cannot name a folder") from error
    if len(pure.parts) != 1 or name.startswith("."):
        raise Refused(f"{name!r} cannot name a folder")
    return models / pure


def _newest(home: Path) -> int:
    """The highest version number there is, 0 when there is none."""
    versions = [int(match[1]) for path in home.glob("v*") if (match := VERSION.fullmatch(path.name))]
    return max(versions, default=0)


def _write_texts(
    folder: Path,
    manifest: Manifest,
    name: str,
    report: Report,
    spec_text: str,
    base_model: str,
    data: tuple[dict[str, Any], ...],
    log_file: Path | None,
) -> None:
    """Everything a person wants beside the model; a file of an earlier, interrupted call is written anew."""
    tokenizer, settings = (
        card.json_object(_first(folder, manifest, Role.TOKENIZER, file))
        for file in ("tokenizer.json", "tokenizer_config.json")
    )
    metrics = _first(folder, manifest, Role.METRICS, "metrics.jsonl")
    trained = card.trainings(metrics.splitlines())
    texts = {
        JOB: spec_text,
        README: card.readme(name, base_model, manifest, report, trained, data),
        MODELFILE: card.modelfile(manifest, tokenizer, settings),
    }
    for file, text in texts.items():
        write_whole(folder / file, text)
    if log_file is not None:
        (folder / DAEMON_LOG).parent.mkdir(exist_ok=True)
        write_whole(folder / DAEMON_LOG, log_file.read_text(encoding="utf-8", errors="replace"))


def _first(folder: Path, manifest: Manifest, role: Role, name: str) -> bytes:
    """The bytes of the manifest's file of this role and name; none when there is none or it is absurdly large."""
    for file in manifest.files:
        if file.role is role and local_name(file.path).name == name and file.size <= MAX_JSON_BYTES:
            return local_path(folder, file.path).read_bytes()
    return b""


def _write_sums(folder: Path, manifest: Manifest) -> None:
    """SHA256SUMS in the form sha256sum reads: the promised hashes, which L1 confirmed, and those of our own texts."""
    sums = {str(local_name(file.path)): file.sha256 for file in manifest.files}
    for own in (MANIFEST, JOB, README, MODELFILE, DAEMON_LOG.as_posix()):
        if (folder / own).exists():
            sums[own] = sha256(folder / own)
    write_whole(folder / SUMS, "".join(f"{digest}  {path}\n" for path, digest in sorted(sums.items())))


def _freeze(folder: Path) -> None:
    """Nothing but what belongs here, nothing writable, every folder durable."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            platform.sync_folder(path)
        elif path.name.endswith((".part", ".tmp")):
            path.unlink()
        else:
            path.chmod(READ_ONLY)
    platform.sync_folder(folder)
