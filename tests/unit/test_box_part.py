"""A file on its way home: the room it takes and the chunks it believes."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest

from daemon.box import room
from daemon.box.part import PartFile, bitmap_of, chunks_of
from remote_payload.contract import ArtifactFile, Role

CHUNK = 1024
TOO_LARGE = (1 << 44) + 1  # over ext4's largest file: even an unchecked reservation would take nothing


def part_of(folder: Path, content: bytes) -> PartFile:
    chunks = [hashlib.sha256(content[i : i + CHUNK]).hexdigest() for i in range(0, len(content), CHUNK)]
    file = ArtifactFile("run/out/m.gguf", Role.GGUF, len(content), hashlib.sha256(content).hexdigest(), chunks)
    return PartFile(file, CHUNK, folder, PurePosixPath("m.gguf"))


def test_a_disk_without_room_is_told_and_left_as_it_was(tmp_path: Path) -> None:
    """ENOSPC with the bytes that are needed and free, before one of them is taken."""
    file = ArtifactFile("run/out/m.gguf", Role.GGUF, TOO_LARGE, "", [])
    part = PartFile(file, CHUNK, tmp_path, PurePosixPath("m.gguf"))

    with pytest.raises(OSError, match=f"{TOO_LARGE} bytes needed") as failure:
        part.open(b"")

    assert failure.value.errno == errno.ENOSPC
    assert part.path.stat().st_blocks == 0


@pytest.mark.parametrize(
    ("disk_bytes", "spared"), [(1 << 40, 64 << 20), (1 << 24, (1 << 24) // 20)], ids=["disk", "small disk"]
)
def test_no_file_takes_the_last_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_bytes: int, spared: int
) -> None:
    """A box may promise files as large as what is free: the database needs some of it, or no limit of money holds."""
    free = SimpleNamespace(free=spared + 2 * CHUNK, total=disk_bytes)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: free)

    part_of(tmp_path, b"a" * 2 * CHUNK).open(b"")
    with pytest.raises(OSError, match=f"{2 * CHUNK + 1} bytes needed, {2 * CHUNK} free") as failure:
        part_of(tmp_path / "other", b"a" * (2 * CHUNK + 1)).open(b"")

    assert failure.value.errno == errno.ENOSPC


def test_only_what_was_synced_is_durable(tmp_path: Path) -> None:
    """A written chunk enters the bitmap with the next sync."""
    part = part_of(tmp_path, b"a" * CHUNK + b"b" * CHUNK + b"c")
    part.open(b"")

    part.store(2, b"c")

    assert part.bitmap == b"\x00" and part.has_news
    part.sync()
    assert part.bitmap == b"\x04" and not part.has_news
    assert part.missing == [0, 1]


def test_a_chunk_that_arrived_wrong_is_found_on_the_disk(tmp_path: Path) -> None:
    """The file's own hash does not come out: the chunk that is wrong is named, and fetched again it does."""
    part = part_of(tmp_path, b"a" * CHUNK + b"b" * CHUNK + b"c")
    part.open(b"")
    for chunk, content in enumerate((b"a" * CHUNK, b"x" * CHUNK, b"c")):
        part.store(chunk, content)
    part.sync()
    assert part.read_back() == [] and not part.is_behind

    assert part.damaged() == [1]

    assert part.missing == [1]
    part.store(1, b"b" * CHUNK)
    part.sync()
    assert part.read_back() == [] and part.damaged() == []


def test_a_recorded_chunk_is_proven_on_the_way(tmp_path: Path) -> None:
    """Of three chunks in the record one was damaged since: reading back finds it, and goes on behind it."""
    content = b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK
    part_of(tmp_path, content).path.write_bytes(b"a" * CHUNK + b"x" * CHUNK + b"c" * CHUNK)
    part = part_of(tmp_path, content)
    part.open(b"\x07")
    assert part.missing == [] and part.is_behind

    assert part.read_back() == [1]

    assert part.missing == [1] and not part.is_behind
    part.store(1, b"b" * CHUNK)
    part.sync()
    assert part.read_back() == [] and part.damaged() == []


def test_written_and_never_recorded_is_claimed(tmp_path: Path) -> None:
    """What a killed process had written since its last commit counts; what was only reserved does not."""
    content = b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK
    first = part_of(tmp_path, content)
    first.open(b"")
    first.store(1, b"b" * CHUNK)

    part = part_of(tmp_path, content)
    part.open(b"")

    assert part.missing == [0, 2] and part.has_news
    part.sync()
    assert part.read_back() == [] and part.missing == [0, 2]


def test_a_file_that_was_frozen_already_can_be_written_again(tmp_path: Path) -> None:
    """The move to the model folder failed after its files were made read-only, and the person had it converted anew."""
    (tmp_path / "m.gguf").write_bytes(b"a" * CHUNK)
    (tmp_path / "m.gguf").chmod(0o444)

    part = part_of(tmp_path, b"b" * CHUNK)
    part.open(b"")

    assert part.path.stat().st_mode & 0o777 == 0o600


def test_another_file_of_the_name_is_fetched_whole(tmp_path: Path) -> None:
    """Chunks that an older manifest put there are kept where they are equal, and only there."""
    old = part_of(tmp_path, b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK)
    old.path.write_bytes(b"a" * CHUNK + b"b" * CHUNK + b"c" * CHUNK)
    part = part_of(tmp_path, b"a" * CHUNK + b"x" * CHUNK + b"y" * CHUNK)
    part.open(b"")
    part.sync()

    assert part.read_back() == [1, 2]

    assert part.missing == [1, 2]


def test_bitmaps_say_what_they_were_given() -> None:
    """Bit i of byte i // 8 is chunk i; a bitmap of a longer file claims nothing beyond the end."""
    assert bitmap_of({0, 9}, 10) == b"\x01\x02"
    assert chunks_of(b"\x01\x02", 10) == {0, 9}
    assert chunks_of(b"\xff\xff", 3) == {0, 1, 2}
    assert chunks_of(b"", 10) == set()
