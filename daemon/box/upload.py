"""Files brought to the box: skipped when already there, written beside, hashed there, renamed.

Writing a block twice is harmless, so a lost link costs only the blocks in flight. What a dead process left beside is
compared chunk by chunk, by hashes made on both sides, and only what differs is sent.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon import platform
from daemon.box.contact import Contact
from daemon.box.lanes import BLOCK_BYTES, SMALL_WRITES, WRITES, Lane, Traffic, lanes_for, spans
from daemon.box.progress import Follow, Tally, nobody
from daemon.errors import TransferFailed
from remote_payload.contract import CHUNK_SIZE, Output, checked_path
from remote_payload.hashes import digest

TRIES = 3  # for a file that arrived and hashes wrong


@dataclass(frozen=True)
class Upload:
    """One file to bring: where it lies here, its path relative to the box's root, and what it must be there."""

    local: Path
    remote: str
    sha256: str
    size: int  # bytes

    @property
    def part(self) -> str:
        return f"{self.remote}.part"

    def is_at(self, found: Output | None) -> bool:
        return found is not None and (found.size, found.sha256) == (self.size, self.sha256)


@dataclass(frozen=True)
class _Block:
    local: Path
    path: str  # absolute, on the box
    offset: int
    size: int

    def read(self) -> bytes:
        """Opened each time: the files of one upload may be more than a process may have open."""
        with open(self.local, "rb", buffering=0) as file:
            return platform.pread(file.fileno(), self.size, self.offset)


async def upload(contact: Contact, files: Sequence[Upload], patience_s: float, follow: Follow = nobody) -> None:
    """Bring what is missing. Needs the payload on the box, which does the hashing there.

    `follow` hears how far all of them are. Raises TransferFailed when a file hashes wrong TRIES times, OSError when one
    cannot be read here. May be repeated.
    """
    for file in files:
        checked_path(file.remote)
    tally = Tally(follow, sum(file.size for file in files))
    missing = list(files)
    for tries_left in range(TRIES, -1, -1):
        if not missing:
            return
        found = await contact.hashes([path for file in missing for path in (file.remote, file.part)])
        arrived = [file for file in missing if file.is_at(found.get(file.part))]
        if arrived:
            await contact.shell("\n".join(f"mv -f {shlex.quote(f.part)} {shlex.quote(f.remote)}" for f in arrived))
        missing = [file for file in missing if file not in arrived and not file.is_at(found.get(file.remote))]
        if missing and tries_left:
            await _carry(contact, missing, found, patience_s, tally)
    if missing:
        raise TransferFailed(f"{contact.name}: {missing[0].remote} hashed wrong {TRIES} times after its upload")


async def _carry(
    contact: Contact, files: Sequence[Upload], there: Mapping[str, Output], patience_s: float, tally: Tally
) -> None:
    """Send every chunk that does not lie in its file's `.part` yet, of those that are `there`."""
    begun = [file for file in files if file.part in there and 0 < there[file.part].size <= file.size]
    known = await contact.chunk_hashes([file.part for file in begun]) if begun else {}
    folders = sorted({str(checked_path(file.remote).parent) for file in files})
    made = [f": {'>>' if file in begun else '>'} {shlex.quote(file.part)}" for file in files]
    await contact.shell("\n".join(["set -e", f"mkdir -p {shlex.join(folders)}", *made]))
    todo: list[list[_Block]] = []
    for file in files:
        path = f"{contact.address.root}/{file.part}"
        has = known.get(file.part, [])
        ours = (await asyncio.to_thread(digest, file.local)).chunks if has else []
        for i, (start, length) in enumerate(spans(0, file.size, CHUNK_SIZE)):
            if has[i : i + 1] != ours[i : i + 1] or not has:
                batch = spans(start, length, BLOCK_BYTES)
                todo.append([_Block(file.local, path, offset, size) for offset, size in batch])
    size = sum(block.size for batch in todo for block in batch)
    tally.begin(size)
    small = size < sum(map(len, todo)) * BLOCK_BYTES / 8

    async def move(lane: Lane, block: _Block) -> None:
        await lane.write(block.path, block.offset, block.read())
        tally.moved(block.size)

    await Traffic(
        todo,
        move,
        contact.dial,
        lanes=lanes_for(size),
        outstanding=SMALL_WRITES if small else WRITES,
        patience_s=patience_s,
        on_again=lambda block: tally.again(block.size),
    ).run()
