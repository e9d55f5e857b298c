"""A file on its way home: the room it takes and the chunks it believes."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path, PurePosixPath

import pytest

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


def test_only_what_was_synced_is_durable(tmp_path: Path) -> None:
    """A written chunk enters the bitmap with the next sync; a sync with nothing new says so."""
    part = part_of(tmp_path, b"a" * CHUNK + b"b" * CHUNK + b"c")
    part.open(b"")

    assert part.store(2, b"c")

    assert part.bitmap == b"\x00"
    assert part.sync()
    assert part.bitmap == b"\x04"
    assert not part.sync()
    assert part.missing == [0, 1]


def test_a_wrong_chunk_is_not_written(tmp_path: Path) -> None:
    """What does not hash to the promise leaves the file as it was."""
    part = part_of(tmp_path, b"a" * CHUNK)
    part.open(b"")

    assert not part.store(0, b"x" * CHUNK)

    assert part.path.read_bytes() == b"\0" * CHUNK
    assert part.missing == [0]


def test_a_claimed_chunk_is_believed_only_if_it_hashes_right(tmp_path: Path) -> None:
    """Of two chunks in the record one was damaged since: it is missing again, and counted."""
    content = b"a" * CHUNK + b"b" * CHUNK
    part_of(tmp_path, content).path.write_bytes(b"a" * CHUNK + b"x" * CHUNK)
    part = part_of(tmp_path, content)

    assert part.open(b"\x03") == 1

    assert part.missing == [1]


def test_bitmaps_say_what_they_were_given() -> None:
    """Bit i of byte i // 8 is chunk i; a bitmap of a longer file claims nothing beyond the end."""
    assert bitmap_of({0, 9}, 10) == b"\x01\x02"
    assert chunks_of(b"\x01\x02", 10) == {0, 9}
    assert chunks_of(b"\xff\xff", 3) == {0, 1, 2}
    assert chunks_of(b"", 10) == set()
