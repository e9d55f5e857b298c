"""L0's judgement of sizes at their real scale, on sparse files that take no room."""

import os
import random
from pathlib import Path

import pytest

from daemon.artifacts import presence, sizes
from remote_payload.contract import ArtifactFile, Manifest, Role

LLAMA_3_1_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
TABLE = sizes.shapes(LLAMA_3_1_8B)
assert TABLE is not None
Q8_0 = sizes.data_bytes(TABLE, sizes.QUANTS["Q8_0"])


def manifest(size: int) -> Manifest:
    file = ArtifactFile("run/out/m-Q8_0.gguf", Role.GGUF, size, "0" * 64, [], "Q8_0")
    return Manifest("abc123", 1, "nonce", 0.0, 8 << 20, [file])


@pytest.fixture
def sparse_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes are not this test's subject; a real file of 8.5 GB would be."""
    monkeypatch.setattr(presence, "DENSE", 0.0)


SIZES = [
    (4_900_000_000, "not above the floor of 5000000000"),
    (Q8_0 - 1, f"its tensors take {Q8_0}"),
    (Q8_0 + 8_000_000, ""),
    (Q8_0 + 100_000_000, f"its tensors take {Q8_0}"),
]


@pytest.mark.parametrize(("size", "says"), SIZES)
def test_the_size_of_an_8b_model(tmp_path: Path, sparse_allowed: None, size: int, says: str) -> None:
    """Below the floor, below the tensors, with room for a header, and with far too much of it."""
    (tmp_path / "m-Q8_0.gguf").touch()
    os.truncate(tmp_path / "m-Q8_0.gguf", size)

    level = presence.check(tmp_path, manifest(size), TABLE)

    assert level.passed == (says == "")
    assert says in level.problem
    assert level.numbers["Q8_0"]["floor_bytes"] == 5_000_000_000
    assert level.numbers["Q8_0"]["above_floor"] == (size > 5_000_000_000)
    (line,) = presence.size_lines([level])
    assert f"{size:,} bytes; the base model's shape gives {Q8_0:,}" in line
    assert f"; {'more' if size > 5_000_000_000 else 'NOT more'} than the 5 GB that one of a 7B" in line


def test_the_right_size_with_nothing_in_it_is_holes(tmp_path: Path) -> None:
    """A file that was only reserved has the exact size and no bytes on disk."""
    (tmp_path / "m-Q8_0.gguf").touch()
    os.truncate(tmp_path / "m-Q8_0.gguf", Q8_0 + 8_000_000)

    level = presence.check(tmp_path, manifest(Q8_0 + 8_000_000), TABLE)

    assert "the file has holes" in level.problem


def test_a_disk_that_compresses_makes_no_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There weights take less than their length, and with some file systems nothing at all by their own account."""
    path = tmp_path / "m-Q8_0.gguf"
    path.write_bytes(random.Random(1).randbytes(1 << 20))
    found = path.lstat()
    monkeypatch.setattr(Path, "lstat", lambda _: os.stat_result(tuple(found), {"st_blocks": found.st_blocks // 2}))

    assert presence.check(tmp_path, manifest(1 << 20), None).passed


def test_a_lost_piece_is_a_hole(tmp_path: Path) -> None:
    """One in fifty bytes was never written."""
    path, content = tmp_path / "m-Q8_0.gguf", random.Random(1).randbytes(49 << 16)
    with open(path, "wb") as file:
        file.write(content[: 20 << 16])
        file.seek(1 << 16, os.SEEK_CUR)
        file.write(content[20 << 16 :])

    level = presence.check(tmp_path, manifest(50 << 16), None)

    assert f"only {49 << 16} of {50 << 16} bytes" in level.problem
