"""Files brought to the box: skipped when already there, written beside, hashed there, renamed.

Writing a block twice is harmless, so a lost link costs only the blocks in flight. A dead process starts its file again:
uploads are data sets of megabytes, not models.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from daemon import platform
from daemon.box.contact import Contact
from daemon.box.lanes import BLOCK_BYTES, WRITES, Lane, Traffic, lanes_for
from daemon.errors import TransferFailed
from remote_payload.contract import Output, checked_path

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
    fd: int
    path: str  # absolute, on the box
    offset: int
    size: int


async def upload(contact: Contact, files: Sequence[Upload], patience_s: float) -> None:
    """Bring what is missing. Needs the payload on the box, which does the hashing there.

    Raises TransferFailed when a file hashes wrong TRIES times, OSError when one cannot be read here. May be repeated.
    """
    for file in files:
        checked_path(file.remote)
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
            await _carry(contact, missing, patience_s)
    if missing:
        raise TransferFailed(f"{contact.name}: {missing[0].remote} hashed wrong {TRIES} times after its upload")


async def _carry(contact: Contact, files: Sequence[Upload], patience_s: float) -> None:
    folders = sorted({str(checked_path(file.remote).parent) for file in files})
    empty = [f": > {shlex.quote(file.part)}" for file in files]
    await contact.shell("\n".join(["set -e", f"mkdir -p {shlex.join(folders)}", *empty]))
    with ExitStack() as opened:
        todo: deque[_Block] = deque()
        for file in files:
            fd = os.open(file.local, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            opened.callback(os.close, fd)
            path = f"{contact.address.root}/{file.part}"
            for offset in range(0, file.size, BLOCK_BYTES):
                todo.append(_Block(fd, path, offset, min(BLOCK_BYTES, file.size - offset)))
        count = lanes_for(sum(file.size for file in files))
        await Traffic(todo, _move, contact.dial, count=count, outstanding=WRITES, patience_s=patience_s).run()


async def _move(lane: Lane, block: _Block) -> None:
    await lane.write(block.path, block.offset, platform.pread(block.fd, block.size, block.offset))
