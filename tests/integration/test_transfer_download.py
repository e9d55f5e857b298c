"""The model on its way home: cuts, a killed process, a lying source, a full folder of names."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from boxes import DurableFile, LoopbackBox, loopback_box, manifest_of, until
from tcp_proxy import CuttingProxy

from daemon.box import lanes
from daemon.box.box import Box
from daemon.box.part import PartFile
from daemon.box.progress import TransferProgress
from daemon.errors import LinkLost, TransferFailed
from remote_payload import contract
from remote_payload.contract import ContractError, Manifest

MIB = 1 << 20
MODEL = "run/out/tiny-Q8_0.gguf"
DOWNLOADER = Path(__file__).with_name("downloader.py")
CONFIG = "run/out/adapter/adapter_config.json"


@asynccontextmanager
async def box_with_model(folder: Path, size: int) -> AsyncIterator[tuple[LoopbackBox, Manifest]]:
    """A box whose run/out holds a model of `size` random bytes, one small file in a folder, and one empty file."""
    async with loopback_box(folder) as there:
        (there.root / "run/out/adapter").mkdir(parents=True)
        (there.root / MODEL).write_bytes(random.Random(1).randbytes(size))
        (there.root / CONFIG).write_text("{}")
        (there.root / "run/out/log.txt").touch()
        yield there, manifest_of(there.root, [MODEL, CONFIG, "run/out/log.txt"])


def ignore(progress: TransferProgress) -> None:
    """For tests that look at the files instead."""


def damage(path: Path, offset: int) -> None:
    with open(path, "rb+") as file:
        file.seek(offset)
        file.write(b"rot")


def assert_home(there: LoopbackBox, manifest: Manifest, home: Path) -> None:
    """Every file lies under its own name with the source's bytes, and nothing else is left."""
    names = {file.path.removeprefix("run/out/") for file in manifest.files}
    assert {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()} == names
    for name in names:
        assert (home / name).read_bytes() == (there.root / "run/out" / name).read_bytes()


async def test_a_manifest_comes_home_under_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large, small and empty files arrive, are recorded as complete, and progress ends at the total."""
    monkeypatch.setattr(lanes, "LATE_S", 60.0)  # a starved machine's blocks lag, and would be asked for twice
    async with box_with_model(tmp_path, 40 * MIB + 12345) as (there, manifest):
        box = Box(there.address(), there.key)
        await box.prove()
        durable = DurableFile(tmp_path / "durable.json")
        seen: list[TransferProgress] = []

        await box.download(manifest, tmp_path / "home", durable, seen.append)

        assert_home(there, manifest, tmp_path / "home")
        assert durable.complete == {file.path for file in manifest.files}
        assert seen[0].done == 0
        assert seen[-1] == TransferProgress(seen[-1].total, sum(f.size for f in manifest.files), 0, 0)
        assert [p.done for p in seen] == sorted(p.done for p in seen)
        await box.aclose()


async def test_cuts_cost_only_the_requests_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four resets in 48 MiB: the file is right and the wire carried at most 1.1 times its size."""
    monkeypatch.setattr(lanes, "LATE_S", 60.0)
    size = 48 * MIB
    async with (
        box_with_model(tmp_path, size) as (there, manifest),
        CuttingProxy(there.port, cut_every=10 * MIB, cuts=4) as proxy,
    ):
        box = Box(there.address(port=proxy.port), there.key)
        await box.prove()

        await box.download(manifest, tmp_path / "home", DurableFile(tmp_path / "durable.json"), ignore)

        assert_home(there, manifest, tmp_path / "home")
        assert proxy.cuts_left == 0
        assert proxy.down <= 1.1 * size
        await box.aclose()


async def test_a_link_that_stays_dead_is_given_up_and_what_arrived_is_kept(tmp_path: Path) -> None:
    """Without progress for the patience the download raises LinkLost; the next one asks for the rest only."""
    size = 24 * MIB
    async with box_with_model(tmp_path, size) as (there, manifest):
        durable = DurableFile(tmp_path / "durable.json")
        async with CuttingProxy(there.port, cut_every=12 * MIB, cuts=1, stay_down=True) as proxy:
            box = Box(there.address(port=proxy.port), there.key, patience_s=3.0)
            await box.prove()
            with pytest.raises(LinkLost):
                await box.download(manifest, tmp_path / "home", durable, ignore)
        async with CuttingProxy(there.port) as proxy:
            box = Box(there.address(port=proxy.port), there.key)
            await box.prove()

            await box.download(manifest, tmp_path / "home", durable, ignore)

            assert_home(there, manifest, tmp_path / "home")
            assert proxy.down < size - 6 * MIB
            await box.aclose()


async def test_a_silent_link_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that neither move nor close are dropped after the stall time, and the download goes on."""
    monkeypatch.setattr(lanes, "STALL_S", 1.0)
    async with box_with_model(tmp_path, 32 * MIB) as (there, manifest), CuttingProxy(there.port) as proxy:
        box = Box(there.address(port=proxy.port), there.key)
        await box.prove()
        frozen = False

        def freeze_once(progress: TransferProgress) -> None:
            nonlocal frozen
            if not frozen and progress.done >= 8 * MIB:
                frozen = True
                proxy.freeze()

        async with asyncio.timeout(28):  # SSH's keepalives would take 30 s
            await box.download(manifest, tmp_path / "home", DurableFile(tmp_path / "durable.json"), freeze_once)

        assert frozen
        assert_home(there, manifest, tmp_path / "home")
        await box.aclose()


async def test_a_slow_disk_slows_the_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be written, no more is asked for than was under way: memory stays bounded."""
    came, may_write, store = threading.Event(), threading.Event(), PartFile.store

    def wait_and_store(part: PartFile, chunk: int, content: memoryview) -> None:
        came.set()
        may_write.wait()
        store(part, chunk, content)

    monkeypatch.setattr(PartFile, "store", wait_and_store)
    async with box_with_model(tmp_path, 128 * MIB) as (there, _), CuttingProxy(there.port) as proxy:
        manifest = manifest_of(there.root, [MODEL], 2 * MIB)
        box = Box(there.address(port=proxy.port), there.key)
        await box.prove()
        durable = DurableFile(tmp_path / "durable.json")
        download = asyncio.create_task(box.download(manifest, tmp_path / "home", durable, ignore))
        try:
            await until(came.is_set)
            passed = -1
            while passed < proxy.down:
                passed = proxy.down
                await asyncio.sleep(1.0)
        finally:
            may_write.set()
        await download

        assert 2 * MIB < passed < 48 * MIB
        assert_home(there, manifest, tmp_path / "home")
        await box.aclose()


def durable_chunks(durable: Path) -> int:
    """How many chunks of the model the record of another process counts as durable."""
    if not durable.exists():
        return 0
    return int(json.loads(durable.read_text()).get(MODEL, "0"), 16).bit_count()


async def test_a_killed_download_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 in the middle: the durable set is true, and the next process asks only for what is missing."""
    size = 48 * MIB
    async with box_with_model(tmp_path, size) as (there, manifest):
        durable = tmp_path / "durable.json"
        async with CuttingProxy(there.port, rate=40 * MIB) as proxy:
            process = await start_downloader(there, proxy.port, manifest, tmp_path / "home", durable)
            await until(lambda: durable_chunks(durable) >= 8)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        kept = durable_chunks(durable)
        assert kept < 48
        async with CuttingProxy(there.port) as proxy:
            process = await start_downloader(there, proxy.port, manifest, tmp_path / "home", durable)

            assert await process.wait() == 0

            assert_home(there, manifest, tmp_path / "home")
            assert proxy.down <= (48 - kept + 1) * MIB


async def test_a_damaged_durable_chunk_is_found_at_resume(tmp_path: Path) -> None:
    """A chunk that rotted on disk after it was recorded is fetched again, whatever the record says."""
    async with box_with_model(tmp_path, 8 * MIB) as (there, manifest):
        box = Box(there.address(), there.key)
        await box.prove()
        home = tmp_path / "home"
        durable = DurableFile(tmp_path / "durable.json")
        await box.download(manifest, home, durable, ignore)
        part = home / "tiny-Q8_0.gguf.part"
        (home / "tiny-Q8_0.gguf").rename(part)
        damage(part, 3 * MIB + 7)

        await box.download(manifest, home, durable, ignore)

        assert_home(there, manifest, home)
        assert durable.bad[MODEL] == 1
        await box.aclose()


async def test_a_damaged_file_under_its_final_name_is_mended(tmp_path: Path) -> None:
    """A finished file that no longer hashes right is taken back and only its bad chunk fetched again."""
    async with box_with_model(tmp_path, 8 * MIB) as (there, manifest), CuttingProxy(there.port) as proxy:
        box = Box(there.address(port=proxy.port), there.key)
        await box.prove()
        home = tmp_path / "home"
        durable = DurableFile(tmp_path / "durable.json")
        await box.download(manifest, home, durable, ignore)
        damage(home / "tiny-Q8_0.gguf", 5 * MIB)
        before = proxy.down

        await box.download(manifest, home, durable, ignore)

        assert_home(there, manifest, home)
        assert proxy.down - before < 2 * MIB
        await box.aclose()


async def test_a_source_that_hashes_wrong_three_times_fails(tmp_path: Path) -> None:
    """A source that is not what was promised never gets the final name; what is right of it is kept."""
    async with box_with_model(tmp_path, 4 * MIB) as (there, manifest):
        damage(there.root / MODEL, 2 * MIB)
        box = Box(there.address(), there.key)
        await box.prove()
        durable = DurableFile(tmp_path / "durable.json")

        with pytest.raises(TransferFailed, match="chunk 2 hashed wrong 3 times"):
            await box.download(manifest, tmp_path / "home", durable, ignore)

        assert not (tmp_path / "home" / "tiny-Q8_0.gguf").exists()
        assert durable.bad[MODEL] == 3
        await box.aclose()


@pytest.mark.parametrize("change", [-5, 5, None], ids=["shorter", "longer", "absent"])
async def test_a_source_of_another_size_is_another_file(tmp_path: Path, change: int | None) -> None:
    """Size is compared before the first byte."""
    async with box_with_model(tmp_path, 2 * MIB) as (there, manifest):
        if change is None:
            (there.root / MODEL).unlink()
        else:
            os.truncate(there.root / MODEL, 2 * MIB + change)
        box = Box(there.address(), there.key)
        await box.prove()

        with pytest.raises(TransferFailed, match=r"tiny-Q8_0\.gguf"):
            await box.download(manifest, tmp_path / "home", DurableFile(tmp_path / "durable.json"), ignore)

        await box.aclose()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "run/out/../../x",
        "run/sft/x",
        "run/out",
        "run/out/a\\b",
        "run/out/adapter",
        "run/out/TINY-q8_0.gguf.part",
    ],
)
async def test_a_manifest_with_a_path_out_of_place_is_refused(tmp_path: Path, path: str) -> None:
    """No path of the box leaves the folder, nor shadows another file: refused before anything is written."""
    async with box_with_model(tmp_path, MIB) as (there, manifest):
        box = Box(there.address(), there.key)
        await box.prove()
        lying = replace(manifest, files=[*manifest.files, replace(manifest.files[0], path=path)])

        with pytest.raises(ContractError):
            await box.download(lying, tmp_path / "home", DurableFile(tmp_path / "durable.json"), ignore)

        assert not (tmp_path / "home").exists()
        await box.aclose()


async def start_downloader(
    there: LoopbackBox, port: int, manifest: Manifest, home: Path, durable: Path
) -> asyncio.subprocess.Process:
    """`Box.download` in a process of its own, to be killed."""
    text = home.with_name("manifest.json")
    text.write_text(contract.dump(manifest))
    arguments = [there.home.parent, port, text, home, durable]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return await asyncio.create_subprocess_exec(sys.executable, DOWNLOADER, *map(str, arguments), env=env)
