"""Verify again what lies on this disk: a model folder of ours, or a GGUF made elsewhere.

Disks forget. A folder that homeport settled has all that is needed in it: the manifest with every hash, the receipt
that names the manifest's hash, and the reference answers. A lone GGUF is held against what there is to hold it
against. A level without anything to compare with is "not run", never passed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from daemon import platform
from daemon.artifacts import gguf, hashing, identity, receipt, sizes, structure
from daemon.artifacts.base import BaseIdentity, base_identity
from daemon.artifacts.folder import MANIFEST, RECEIPT, SUMS
from daemon.artifacts.gguf import Gguf, GgufError
from daemon.artifacts.layout import OUT
from daemon.artifacts.levels import (
    BEHAVIOUR,
    BYTES,
    IDENTITY,
    NUMBERS,
    PRESENCE,
    Level,
    failed,
    not_run,
    passed,
)
from daemon.artifacts.presence import DENSE
from daemon.artifacts.receipt import Receipt
from daemon.artifacts.scan import Scan
from daemon.artifacts.verify import Report, Say, verify
from daemon.errors import HomeportError, SpecError
from remote_payload.contract import ContractError, Manifest, load

NO_BASE = "the base model's files are not here; name their folder with --base"


def again(path: Path, *, base: Path | None, sha256: str | None, cache: Path, hub: str, say: Say) -> Report:
    """Verify a model folder (also when one of its files is given), or a lone GGUF that should hash to `sha256`.

    A file beside a receipt that the manifest does not name fails: nothing there says what it should be. The base
    model's identity comes from the folder `base`, else as the receipt has it from `cache` or `hub`. Raises SpecError
    for a folder that is not one of ours or a base without its files, OSError as it comes.
    """
    base = base.absolute() if base else None  # what is not would be taken for a hub id
    inside = path.parent if path.is_file() and (path.parent / RECEIPT).is_file() and not sha256 else path
    if inside.is_dir():
        return asyncio.run(_settled(inside, path, base, cache, hub, say))
    if not path.is_file():
        raise SpecError([f"{path}: neither a file nor a folder"])
    return _lone(path, base, sha256, say)


async def _settled(folder: Path, asked: Path, base: Path | None, cache: Path, hub: str, say: Say) -> Report:
    try:
        kept = receipt.load((folder / RECEIPT).read_text(encoding="utf-8"))
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        manifest = load(Manifest, text)
    except (OSError, ValueError, ContractError) as error:
        hint = f"sha256sum -c {SUMS}, in the folder, checks the bytes; jobctl verify FILE.gguf more of one file"
        raise SpecError([f"{folder}: not a model folder of homeport: {error}"], hint=hint) from error
    if hashlib.sha256(text.encode()).hexdigest() != kept.manifest_sha256:
        return _refuted(f"{MANIFEST} is not the one that {RECEIPT} is about", say)
    if not _is_named(folder, asked, manifest):
        why = f"{asked.name} is not named by {MANIFEST} beside it: compared with nothing; with --sha256 it is, alone"
        return _refuted(why, say)
    known = await _base(kept, base, cache, hub)
    return await verify(folder, manifest, known, "any", say)


def _is_named(folder: Path, asked: Path, manifest: Manifest) -> bool:
    """Whether verifying `folder` says anything of the file `asked`. Manifest and receipt hold each other."""
    named = [str(OUT / asked.name) == file.path for file in manifest.files]
    return asked in (folder, folder / RECEIPT, folder / MANIFEST) or any(named)


def _refuted(why: str, say: Say) -> Report:
    wrong = failed(PRESENCE, why)
    say(wrong)
    return Report(False, "any", (wrong,))


async def _base(kept: Receipt, named: Path | None, cache: Path, hub: str) -> BaseIdentity | None:
    """The base model's identity: the folder that is named, else what the receipt names, if it can be had."""
    about = kept.base or {}
    model, revision = (str(named), None) if named else (about.get("model"), about.get("revision"))
    if model is None:
        return None
    try:
        found = await base_identity(model, revision, cache, endpoint=hub, token=os.environ.get("HF_TOKEN"))
    except HomeportError:  # moved since, or no network: the level says that it was not run
        if named:
            raise
        return None
    return BaseIdentity(found.model, found.folder, found.revision, about.get("without_opening") is True)


def _lone(path: Path, base: Path | None, sha256: str | None, say: Say) -> Report:
    known = asyncio.run(base_identity(str(base), None, path.parent)) if base else None
    levels: list[Level] = []
    for level in _lone_levels(path, known, sha256 or _promised(path)):
        levels.append(level)
        say(level)
        if level.ran and not level.passed:
            break
    return Report(all(level.passed or not level.ran for level in levels), "any", tuple(levels))


def _lone_levels(path: Path, base: BaseIdentity | None, promised: str | None) -> list[Level]:
    """Every level, also after one that failed: they come from one read."""
    parsed: Gguf | GgufError
    scan: Scan | None = None
    try:
        parsed = gguf.read(path)
        scan = Scan(parsed)
    except GgufError as error:
        parsed = error
    except ImportError:  # numpy is missing, which L4 says
        scan = None
    found = hashing.sha256(path, scan)
    levels = [_presence(path), _bytes(found, promised), structure.judge(parsed)]
    if isinstance(parsed, Gguf):
        quant = sizes.quant_of(parsed.metadata.get("general.file_type"))
        levels.append(identity.check(parsed, base, quant) if base else not_run(IDENTITY, NO_BASE))
        levels.append(scan.level() if scan else not_run(NUMBERS, "numpy is not installed"))
        levels.append(not_run(BEHAVIOUR, "no reference answers to compare with"))
    return levels


def _presence(path: Path) -> Level:
    size, written = path.stat().st_size, platform.bytes_written(path)
    if written is not None and written < DENSE * size:
        return failed(PRESENCE, f"only {written} of {size} bytes are on disk: the file has holes")
    return passed(PRESENCE, {"bytes": size})


def _bytes(found: str, promised: str | None) -> Level:
    if promised is None:
        return Level(
            BYTES, False, {"sha256": found}, f"not run: nothing to compare with; its sha256 is {found}", ran=False
        )
    if found != promised.lower():
        return failed(BYTES, f"sha256 on disk is {found}, expected {promised}")
    return passed(BYTES, {"sha256": found})


def _promised(path: Path) -> str | None:
    """What a SHA256SUMS beside the file says of it."""
    try:
        lines = (path.parent / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # there is none, or it is something else
        return None
    told = (line.partition(" ")[::2] for line in lines)  # the name follows a space or a star
    return next((digest for digest, name in told if name[1:].removeprefix("./") == path.name), None)
