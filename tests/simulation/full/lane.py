"""The lane of bytes from a simulated box: what production's download asks of its link and of its reader of ranges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncssh

from .box_disk import FILES

if TYPE_CHECKING:
    from .box import FakeBox

ROOT = "/root/homeport"
DRIP_S = 29.0  # for one block, one after the other: a little later and the lane would be given up as dead


class Lane:
    """What production's Lane asks of its link and of its reader of ranges: open, read at an offset."""

    name = "box"
    longest = 1 << 20

    def __init__(self, box: FakeBox) -> None:
        self._box = box

    async def ranges(self) -> Lane:
        return self

    def abort(self) -> None:
        return None

    def count(self, up: int, down: int) -> None:
        self._box._count(up, down)

    async def open(self, path: str) -> tuple[bytes, int]:
        content = await self._traffic(path)
        if content is None:
            raise asyncssh.SFTPNoSuchFile(path)
        return path.encode(), len(content)

    async def read(self, handle: bytes, offset: int, size: int) -> list[memoryview]:
        block = bytearray((await self._traffic(handle.decode()) or b"")[offset : offset + size])
        if block and self._box.sim.sky.strikes("bit flip"):
            block[0] ^= 1
        return [memoryview(block)] if block else []

    async def _traffic(self, path: str) -> bytes | None:
        sim = self._box.sim
        ending = sim.ending("box", "block")
        await asyncio.sleep(0.1)
        if self._box.drips:
            async with self._box.drip:
                await asyncio.sleep(DRIP_S)
        if (ending or "").startswith("error") or ending == "effect, then error" or sim.sky.strikes("download cut"):
            raise asyncssh.SFTPConnectionLost("cut")
        sim.after(ending)
        disk = self._box._reached()
        name = path.removeprefix(f"{ROOT}/run/out/")
        return disk.content(name) if disk.manifest and name in FILES else None
