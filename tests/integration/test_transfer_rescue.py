"""What a rescue brings home: whole checkpoints by their own manifests, logs as they are."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncssh
import pytest
from boxes import LoopbackBox, loopback_box

from daemon.box.box import Box
from daemon.box.progress import TransferProgress
from daemon.box.upload import Upload
from daemon.errors import LinkLost, TransferFailed
from remote_payload import contract
from remote_payload.contract import Checkpoint, Output, Stage


@asynccontextmanager
async def proven(folder: Path) -> AsyncIterator[tuple[LoopbackBox, Box]]:
    async with loopback_box(folder) as there:
        box = Box(there.address(), there.key)
        await box.prove()
        yield there, box
        await box.aclose()


def save_checkpoint(there: LoopbackBox, step: int, *, whole: bool = True) -> Path:
    folder = there.root / f"run/sft/checkpoint-{step}"
    folder.mkdir(parents=True)
    outputs = []
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        content = f"{name} of {step}".encode() * 100_000
        (folder / name).write_bytes(content)
        outputs.append(Output(name, len(content), hashlib.sha256(content).hexdigest()))
    if whole:
        (folder / "checkpoint.json").write_text(contract.dump(Checkpoint(Stage.SFT, step, "print", outputs)))
    return folder


async def test_whole_checkpoints_and_logs_come_home(tmp_path: Path) -> None:
    """Every promised file arrives with its hash; a checkpoint without its manifest is left where it is."""
    async with proven(tmp_path) as (there, box):
        source = save_checkpoint(there, 100)
        save_checkpoint(there, 200, whole=False)
        (source / "stranger.bin").write_bytes(b"not promised")
        (there.root / "run/sft/trainer.log").write_text("step 100\n")

        seen: list[TransferProgress] = []
        outputs = await box.fetch_folder("run/sft", tmp_path / "home", follow=seen.append)

        size = sum(o.size for o in outputs if not o.path.endswith("checkpoint.json"))
        assert (seen[0].done, seen[-1].done, seen[-1].total) == (0, size, size)
        home = {str(p.relative_to(tmp_path / "home")) for p in (tmp_path / "home").rglob("*") if p.is_file()}
        names = {"adapter_model.safetensors", "optimizer.pt", "checkpoint.json"}
        assert home == {"trainer.log", *(f"checkpoint-100/{name}" for name in names)} == {o.path for o in outputs}
        for output in outputs:
            assert hashlib.sha256((tmp_path / "home" / output.path).read_bytes()).hexdigest() == output.sha256


async def test_only_the_asked_suffixes_come_and_nothing_comes_twice(tmp_path: Path) -> None:
    """An adapter-only rescue leaves the optimizer; what is already home with the right hash is not fetched."""
    async with proven(tmp_path) as (there, _):
        save_checkpoint(there, 100)
        down = 0

        def count(up: int, more: int) -> None:
            nonlocal down
            down += more

        first = Box(there.address(), there.key, on_bytes=count)
        await first.prove()
        await first.fetch_folder("run/sft", tmp_path / "home", (".safetensors",))
        await first.aclose()
        carried, down = down, 0

        box = Box(there.address(), there.key, on_bytes=count)
        await box.prove()
        again = await box.fetch_folder("run/sft", tmp_path / "home", (".safetensors",))
        await box.aclose()

        assert {o.path for o in again} == {"checkpoint-100/adapter_model.safetensors", "checkpoint-100/checkpoint.json"}
        assert not (tmp_path / "home/checkpoint-100/optimizer.pt").exists()
        assert down < 16_384 < 2_000_000 < carried


@pytest.mark.parametrize("torn", [False, True])
async def test_what_a_cut_left_of_a_checkpoint_is_not_fetched_again(tmp_path: Path, torn: bool) -> None:
    """Cut in its midst, it goes on there. What was not written to its end before is found by its hash, and mended."""
    down = 0

    def count(up: int, more: int) -> None:
        nonlocal down
        down += more

    def cut(progress: TransferProgress) -> None:
        if progress.done > progress.total * 0.8:
            raise LinkLost("cut")

    async with proven(tmp_path) as (there, first):
        source, home = save_checkpoint(there, 100), tmp_path / "home/checkpoint-100"
        with pytest.raises(LinkLost):
            await first.fetch_folder("run/sft", tmp_path / "home", follow=cut)
        if torn:
            part = home / "adapter_model.safetensors.part"
            written = part.read_bytes()
            part.write_bytes(written[:100_000] + b"\0" * 4096 + written[104_096:])
        box = Box(there.address(), there.key, on_bytes=count)
        await box.prove()
        seen: list[TransferProgress] = []
        await box.fetch_folder("run/sft", tmp_path / "home", follow=seen.append)
        await box.aclose()

        total = seen[0].total
        assert seen[0].done > total * 0.8 and seen[-1].done == total
        assert (down > total / 2) is torn and down < total
        for file in source.iterdir():
            assert (home / file.name).read_bytes() == file.read_bytes()


async def test_a_checkpoint_that_hashes_wrong_fails(tmp_path: Path) -> None:
    """A damaged checkpoint never gets its names at home."""
    async with proven(tmp_path) as (there, box):
        folder = save_checkpoint(there, 100)
        size = (folder / "optimizer.pt").stat().st_size
        (folder / "optimizer.pt").write_bytes(b"\0" * size)

        with pytest.raises(TransferFailed, match=r"optimizer\.pt"):
            await box.fetch_folder("run/sft", tmp_path / "home")

        assert not (tmp_path / "home/checkpoint-100/checkpoint.json").exists()


async def test_a_checkpoint_that_is_rotated_away_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed, and deleted before it was looked into: the others come home."""
    async with proven(tmp_path) as (there, box):
        rotated = save_checkpoint(there, 100)
        save_checkpoint(there, 200)
        listed = asyncssh.SFTPClient.scandir

        async def rotating(sftp: asyncssh.SFTPClient, path: str) -> AsyncIterator[asyncssh.SFTPName]:
            async for entry in listed(sftp, path):
                yield entry
            shutil.rmtree(rotated, ignore_errors=True)

        monkeypatch.setattr(asyncssh.SFTPClient, "scandir", rotating)
        brought = await box.fetch_folder("run/sft", tmp_path / "home")

        assert {Path(output.path).parent.name for output in brought} == {"checkpoint-200"}
        assert await box.fetch_folder("run/sft/checkpoint-100", tmp_path / "home") == []


async def test_a_name_that_no_file_here_may_have_fails(tmp_path: Path) -> None:
    """A path of the box that leaves its folder, or would not be one name here, is refused in the daemon's own terms."""
    async with proven(tmp_path) as (there, box):
        (there.root / "run/sft").mkdir(parents=True)
        (there.root / "run/sft" / "C:evil\\log.txt").write_text("x")

        for remote in ("run/sft", "../box", "/etc"):
            with pytest.raises(TransferFailed):
                await box.fetch_folder(remote, tmp_path / "home")

        assert not (tmp_path / "home").exists()


async def test_a_log_larger_than_the_disk_is_refused_and_takes_nothing(tmp_path: Path) -> None:
    """A sparse file of the box cannot fill the disk at home."""
    async with proven(tmp_path) as (there, box):
        (there.root / "run/sft").mkdir(parents=True)
        (there.root / "run/sft/trainer.log").touch()
        os.truncate(there.root / "run/sft/trainer.log", shutil.disk_usage(tmp_path).total)

        with pytest.raises(OSError, match="bytes needed"):
            await box.fetch_folder("run/sft", tmp_path / "home")

        assert (tmp_path / "home/trainer.log.part").stat().st_blocks == 0


async def test_links_of_the_box_are_not_followed(tmp_path: Path) -> None:
    """A link to a file outside the folder is not taken for a log."""
    async with proven(tmp_path) as (there, box):
        (there.root / "run/sft").mkdir(parents=True)
        (tmp_path / "secret").write_text("of the machine")
        (there.root / "run/sft/trainer.log").symlink_to(tmp_path / "secret")

        assert await box.fetch_folder("run/sft", tmp_path / "home") == []


@contextmanager
def few_open_files(limit: int) -> Iterator[None]:
    """This process can have no more open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_files_than_either_side_can_have_open(tmp_path: Path) -> None:
    """A folder of many small files, and its way up, need few handles there and fewer here."""
    async with proven(tmp_path) as (there, box):
        await box.upload_payload()
        (there.root / "run/sft").mkdir(parents=True)
        for i in range(900):
            (there.root / f"run/sft/{i}.json").write_text(f"{i}" * 100)
        resource.prlimit(there.server.pid, resource.RLIMIT_NOFILE, (700, 700))

        with few_open_files(400):
            brought = await box.fetch_folder("run/sft", tmp_path / "home")
            up = [Upload(tmp_path / "home" / f.path, f"again/{f.path}", f.sha256, f.size) for f in brought]
            await box.upload(up)

        assert len(brought) == 900
        for i in range(900):
            assert (there.root / f"again/{i}.json").read_text() == f"{i}" * 100
