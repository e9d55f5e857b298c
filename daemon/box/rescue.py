"""Checkpoints, adapters and logs brought home from a folder of the box while, or after, a stage runs.

A checkpoint is taken only whole: its own checkpoint.json says which files it has and what they hash to. Everything else
is taken as it is when it is listed. Nothing is parsed or loaded here but that manifest; the rest are opaque bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import asyncssh

from daemon import platform
from daemon.box.contact import FILE_S, Contact
from daemon.box.lanes import BATCH_BLOCKS, BLOCK_BYTES, MAX_LANES, READS, Lane, Traffic, lanes_for, spans
from daemon.box.link import translated, within
from daemon.box.pace import Pace
from daemon.box.part import PAGE, part_of
from daemon.box.progress import Follow, Tally, nobody
from daemon.box.room import reserve
from daemon.errors import TransferFailed
from remote_payload import contract
from remote_payload.contract import Checkpoint, ContractError, Output

TRIES = 3
MAX_DEPTH = 8  # folders below the one asked for


@dataclass(frozen=True)
class _Wanted:
    """A file to bring: path relative to the folder, and its hash when a checkpoint's manifest names it.

    `content` is that of such a manifest, which had to be read to know the others.
    """

    path: PurePosixPath
    size: int
    sha256: str | None
    content: bytes | None = None


@dataclass(frozen=True)
class _Block:
    part: Path
    path: str
    offset: int
    size: int
    of: int  # the file's size

    def write(self, content: bytes) -> None:
        """Opened each time: the files of one folder may be more than a process may have open."""
        with open(self.part, "rb+", buffering=0) as file:
            platform.pwrite(file.fileno(), content, self.offset)


async def fetch_folder(
    contact: Contact,
    remote: str,
    folder: Path,
    only: Collection[str],
    patience_s: float,
    pace: Pace | None = None,
    follow: Follow = nobody,
) -> list[Output]:
    """Copy the files under `remote` whose names end in one of `only` (empty: all) into `folder`.

    Returns what now lies there, paths relative to `folder`: nothing of a folder that the box does not have. A file
    already there with the right hash is not fetched, nor what an earlier call brought of a checkpoint's file.
    Checkpoint manifests come last: a checkpoint.json at home means that all asked for of it is there. Raises
    TransferFailed when a file vanishes meanwhile or hashes wrong TRIES times; may be called again. With a `pace` it
    keeps to one connection and to that many bytes a second. `follow` hears how far it is.
    """
    try:
        contract.checked_path(remote)
        wanted = await _list(contact, remote, tuple(only))
    except ContractError as error:
        raise TransferFailed(f"{contact.name}: {remote}: {error}") from error
    manifests = [file for file in wanted if file.content is not None]
    others = [file for file in wanted if file.content is None]
    home = await _bring(contact, remote, folder, others, patience_s, pace, follow)
    return home + await asyncio.to_thread(_store, folder, manifests)


async def _bring(
    contact: Contact,
    remote: str,
    folder: Path,
    files: list[_Wanted],
    patience_s: float,
    pace: Pace | None,
    follow: Follow,
) -> list[Output]:
    tally = Tally(follow, _size(files))
    home = await asyncio.to_thread(_already_here, folder, files)
    missing = _without(files, home)
    tries = 0
    while missing:
        if tries == TRIES:
            raise TransferFailed(f"{contact.name}: {remote}/{missing[0].path} is not what its checkpoint.json promises")
        tries += 1
        goes_on = tries == 1  # what hashed wrong is fetched anew
        await _carry(contact, remote, folder, missing, goes_on, patience_s, pace, tally)
        arrived = await asyncio.to_thread(_accept, folder, missing)
        home += arrived
        missing = _without(missing, arrived)
    tally.begin(0)
    return home


def _without(files: list[_Wanted], home: list[Output]) -> list[_Wanted]:
    here = {output.path for output in home}
    return [file for file in files if str(file.path) not in here]


def _size(files: list[_Wanted]) -> int:
    return sum(file.size for file in files)


async def _list(contact: Contact, remote: str, only: tuple[str, ...]) -> list[_Wanted]:
    """Regular files only: links and devices are not followed. Raises ContractError for a name not to trust."""
    link = await contact.link()
    sftp = await link.sftp()
    found: list[_Wanted] = []
    seen = 0
    folders = deque([PurePosixPath()])
    while folders:
        here = folders.popleft()
        entries: list[asyncssh.SFTPName] = []
        with translated(f"{contact.name}: list {remote}/{here}"), within(link, FILE_S):
            try:
                async for entry in sftp.scandir(f"{contact.address.root}/{remote}/{here}"):
                    entries.append(entry)
                    seen += 1
                    if seen > contract.MAX_FILES:
                        raise TransferFailed(f"{contact.name}: {remote} has more than {contract.MAX_FILES} entries")
            except asyncssh.SFTPNoSuchFile:
                continue  # rotated away since it was named
        files: dict[str, int] = {}
        below: list[PurePosixPath] = []
        for entry in entries:
            name = str(entry.filename)
            if name in (".", ".."):
                continue
            path = here / contract.checked_path(name).name
            if entry.attrs.type == asyncssh.FILEXFER_TYPE_DIRECTORY and len(path.parts) <= MAX_DEPTH:
                below.append(path)
            elif entry.attrs.type == asyncssh.FILEXFER_TYPE_REGULAR:
                files[name] = entry.attrs.size or 0
        found += await _choose(contact, remote, here, files, only)
        if not _is_checkpoint(remote, here):  # whose own manifest names what lies below it, or it is not finished
            folders.extend(below)
    return found


async def _choose(
    contact: Contact, remote: str, here: PurePosixPath, files: dict[str, int], only: tuple[str, ...]
) -> list[_Wanted]:
    """Of one folder: what a checkpoint's manifest names, or, where there is none, every file as it is now."""
    chosen = {name: size for name, size in files.items() if not only or name.endswith(only)}
    if contract.CHECKPOINT_MANIFEST not in files:
        unfinished = _is_checkpoint(remote, here)
        return [] if unfinished else [_Wanted(here / name, size, None) for name, size in chosen.items()]
    text = await contact.read_whole(f"{remote}/{here}/{contract.CHECKPOINT_MANIFEST}")
    if text is None:
        return []  # rotated away since it was listed
    promised = [(contract.checked_path(file.path), file) for file in contract.load(Checkpoint, text).files]
    named = [
        _Wanted(here / path, file.size, file.sha256) for path, file in promised if not only or path.name.endswith(only)
    ]
    manifest = _Wanted(here / contract.CHECKPOINT_MANIFEST, len(text), hashlib.sha256(text).hexdigest(), text)
    return [*named, manifest]


def _is_checkpoint(remote: str, here: PurePosixPath) -> bool:
    return PurePosixPath(remote, here).name.startswith("checkpoint-")


async def _carry(
    contact: Contact,
    remote: str,
    folder: Path,
    files: list[_Wanted],
    goes_on: bool,
    patience_s: float,
    pace: Pace | None,
    tally: Tally,
) -> None:
    """Fetch `files` into their parts; if it `goes_on`, without the blocks that lie there, where a hash will tell."""

    async def admit(block: _Block) -> None:
        if pace is not None:
            await pace.take(block.size)

    async def move(lane: Lane, block: _Block) -> None:
        pieces = await lane.read(block.path, block.offset, block.size, of=block.of)
        block.write(b"".join(pieces))
        tally.moved(block.size)

    todo: list[list[_Block]] = []
    for file in files:
        part = part_of(folder / file.path)
        source = f"{contact.address.root}/{remote}/{file.path}"
        blank = await asyncio.to_thread(_make_room, part, file.size, goes_on and file.sha256 is not None)
        blocks = [_Block(part, source, offset, size, file.size) for offset, size in blank]
        todo += (blocks[first : first + BATCH_BLOCKS] for first in range(0, len(blocks), BATCH_BLOCKS))
    left = sum(block.size for batch in todo for block in batch)
    tally.begin(left)
    count, most = (lanes_for(left), MAX_LANES) if pace is None else (1, 1)
    await Traffic(
        todo,
        move,
        contact.dial,
        lanes=count,
        most=most,
        outstanding=READS,
        patience_s=patience_s,
        admit=admit,
        on_again=lambda block: tally.again(block.size),
    ).run()


def _make_room(part: Path, size: int, goes_on: bool) -> list[tuple[int, int]]:
    """Have `size` bytes on the disk; (offset, size) of the blocks that are to be fetched.

    All of them, unless it `goes_on`: then those that begin with a page of zeros, as what was only reserved does.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    try:
        os.ftruncate(fd, min(os.fstat(fd).st_size, size) if goes_on else 0)
        reserve(fd, part, size)
        blocks = spans(0, size, BLOCK_BYTES)
        return [block for block in blocks if not any(platform.pread(fd, min(PAGE, block[1]), block[0]))]
    finally:
        os.close(fd)


def _already_here(folder: Path, files: list[_Wanted]) -> list[Output]:
    """Those that need not be fetched."""
    hashes = {file: _hash_of(folder / file.path, file.size) for file in files if file.sha256 is not None}
    return [Output(str(f.path), f.size, sha256) for f, sha256 in hashes.items() if sha256 and sha256 == f.sha256]


def _accept(folder: Path, files: list[_Wanted]) -> list[Output]:
    """Give those that arrived and hash right their names; what nobody promised a hash for is right as it is."""
    right = []
    for file in files:
        part = part_of(folder / file.path)
        with open(part, "rb+") as f:
            platform.sync_file(f.fileno())
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        if file.sha256 in (None, sha256):
            part.replace(folder / file.path)
            right.append(Output(str(file.path), file.size, sha256))
    for holder in {folder / below for output in right for below in PurePosixPath(output.path).parents}:
        platform.sync_folder(holder)
    return right


def _store(folder: Path, manifests: list[_Wanted]) -> list[Output]:
    """Manifests that were read already."""
    for file in manifests:
        part = part_of(folder / file.path)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(file.content or b"")
    return _accept(folder, manifests)


def _hash_of(path: Path, size: int) -> str | None:
    if not path.is_file() or path.stat().st_size != size:
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
