"""Files on their way to the box, and the payload that hashes them there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from boxes import LoopbackBox, loopback_box
from tcp_proxy import CuttingProxy

from daemon.box.box import Box
from daemon.box.progress import TransferProgress
from daemon.box.upload import Upload
from daemon.errors import TransferFailed
from remote_payload.contract import ContractError

MIB = 1 << 20


@asynccontextmanager
async def ready_box(folder: Path) -> AsyncIterator[tuple[LoopbackBox, CuttingProxy, Box]]:
    """Proven, with the payload on it, reached through a proxy."""
    async with loopback_box(folder) as there, CuttingProxy(there.port) as proxy:
        box = Box(there.address(port=proxy.port), there.key)
        await box.prove()
        await box.upload_payload()
        yield there, proxy, box
        await box.aclose()


def local_file(path: Path, size: int, remote: str = "data/rows.jsonl") -> Upload:
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    return Upload(path, remote, hashlib.sha256(content).hexdigest(), size)


async def test_the_payload_runs_on_the_box_and_is_sent_once(tmp_path: Path) -> None:
    """The uploaded package hashes a file there; a second call finds its version and sends next to nothing."""
    async with ready_box(tmp_path) as (there, proxy, box):
        (there.root / "x").write_bytes(b"abc")

        printed = await box.run(f"PYTHONPATH=payload {box.address.python} -m remote_payload.hashes x")

        assert hashlib.sha256(b"abc").hexdigest() in printed
        before = proxy.up
        await box.upload_payload()
        assert proxy.up - before < 4096


async def test_uploads_arrive_whole_and_are_skipped_the_second_time(tmp_path: Path) -> None:
    """A large and a small file lie under their own names; with the right hash there, nothing is sent again."""
    async with ready_box(tmp_path) as (there, proxy, box):
        files = [local_file(tmp_path / "big", 20 * MIB, "model/weights.bin"), local_file(tmp_path / "small", 99)]

        seen: list[TransferProgress] = []
        await box.upload(files, seen.append)

        assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, 20 * MIB + 99, 20 * MIB + 99)
        assert (there.root / "model/weights.bin").read_bytes() == (tmp_path / "big").read_bytes()
        assert (there.root / "data/rows.jsonl").read_bytes() == (tmp_path / "small").read_bytes()
        assert not list(there.root.rglob("*.part"))
        before = proxy.up
        await box.upload(files)
        assert proxy.up - before < 8192


async def test_cuts_during_an_upload_cost_only_the_requests_in_flight(tmp_path: Path) -> None:
    """A reset in 96 MiB: the file is right there and the wire carried at most 1.1 times its size."""
    async with ready_box(tmp_path) as (there, proxy, box):
        file = local_file(tmp_path / "big", 96 * MIB)
        proxy.cut_each(50 * MIB, times=1)
        before = proxy.up

        await box.upload([file])

        assert (there.root / file.remote).read_bytes() == file.local.read_bytes()
        assert proxy.cuts_left == 0
        assert proxy.up - before <= 1.1 * file.size


async def test_an_upload_that_died_goes_on(tmp_path: Path) -> None:
    """What lies beside from an earlier try is compared by chunks, one of them rotten: only what differs is sent."""
    async with ready_box(tmp_path) as (there, proxy, box):
        file = local_file(tmp_path / "big", 40 * MIB)
        content = file.local.read_bytes()
        (there.root / "data").mkdir()
        left = bytearray(content[: 20 * MIB])
        left[3] ^= 1
        (there.root / file.part).write_bytes(left)
        before = proxy.up

        await box.upload([file])

        assert (there.root / file.remote).read_bytes() == content
        assert proxy.up - before < (40 - 8) * MIB + MIB  # the second chunk was there, the third in half


async def test_a_damaged_file_on_the_box_is_replaced(tmp_path: Path) -> None:
    """Same name and size but other bytes: the hash decides."""
    async with ready_box(tmp_path) as (there, _, box):
        file = local_file(tmp_path / "rows", MIB)
        await box.upload([file])
        (there.root / file.remote).write_bytes(b"\0" * MIB)

        await box.upload([file])

        assert (there.root / file.remote).read_bytes() == file.local.read_bytes()


async def test_a_file_that_is_not_what_was_promised_fails(tmp_path: Path) -> None:
    """A local file that changed since it was counted never gets its name on the box."""
    async with ready_box(tmp_path) as (there, _, box):
        file = local_file(tmp_path / "rows", 1000)
        file.local.write_bytes(b"x" * 1000)

        with pytest.raises(TransferFailed, match="3 times"):
            await box.upload([file])

        assert not (there.root / file.remote).exists()


async def test_an_upload_cannot_leave_the_root(tmp_path: Path) -> None:
    """The remote path is checked before anything is sent."""
    async with ready_box(tmp_path) as (_, _, box):
        with pytest.raises(ContractError):
            await box.upload([local_file(tmp_path / "rows", 10, "../rows")])
