"""L4 on tensors made for it: every block type's scales are found, and runs of zeros across the pieces of a scan."""

import hashlib
import random
import struct
import tracemalloc
from itertools import groupby
from pathlib import Path

import pytest

from daemon.artifacts import gguf, hashing, scan, tiny
from daemon.artifacts.blocks import TYPES, BlockType
from daemon.artifacts.levels import Level

NAN, ONE, BIG = struct.pack("<e", float("nan")), struct.pack("<e", 1.0), struct.pack("<e", 2048.0)
PACKED = [kind for kind in TYPES if kind.scales]


def blocks(kind: BlockType, count: int) -> bytearray:
    """`count` blocks with every scale 1.0 and every other byte 0xFF, which no scale may be mistaken for."""
    block = bytearray(b"\xff" * kind.size)
    for at in kind.scales:
        block[at : at + 2] = ONE
    return block * count


def scanned(path: Path, kind: BlockType, content: bytes, name: str = "blk.0.ffn_up.weight") -> Level:
    """L4 of a file with this one tensor."""
    shape = (kind.elements, len(content) // kind.size)
    tiny.write(path, {"general.architecture": "llama"}, {name: (shape, kind.name, bytes(content))})
    found = scan.Scan(gguf.read(path))
    assert hashing.sha256(path, found) == hashlib.sha256(path.read_bytes()).hexdigest()
    return found.level()


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_every_scale_of_every_block_type_is_looked_at(tmp_path: Path, kind: BlockType) -> None:
    """Good blocks pass; a NaN, or a value far out of line, in each place of a scale is found."""
    assert scanned(tmp_path / "good", kind, blocks(kind, 50)).passed
    for at in kind.scales:
        for value, says in ((NAN, "not finite"), (BIG, "2048 times the tensor's median")):
            content = blocks(kind, 50)
            content[kind.size * 7 + at : kind.size * 7 + at + 2] = value

            level = scanned(tmp_path / "bad", kind, content)

            assert says in level.problem


@pytest.mark.parametrize(("form", "type_name", "worst"), [("<f", "F32", 1e38), ("<e", "F16", 6e4)], ids=["F32", "F16"])
def test_plain_floats_are_values(tmp_path: Path, form: str, type_name: str, worst: float) -> None:
    """Infinities and a flipped top exponent bit are found among plain values too."""
    kind = next(kind for kind in TYPES if kind.name == type_name)
    good = struct.pack(form, 0.5) * 1000

    assert scanned(tmp_path / "good", kind, good).passed
    assert "not finite" in scanned(tmp_path / "inf", kind, good + struct.pack(form, float("inf"))).problem
    assert "times" in scanned(tmp_path / "flip", kind, good + struct.pack(form, worst)).problem


def test_zeros_are_judged_by_how_many_lie_in_a_row(tmp_path: Path) -> None:
    """A zero row is legal, a whole tensor or 64 KiB in a row are not; untrained tokens' rows and biases may be zero.

    Of those Llama 3.1 has 245 in a row, in the embedding and in the output: a megabyte of either.
    """
    kind = next(kind for kind in TYPES if kind.name == "Q8_0")
    hole = bytes(34 * 2000)
    with_hole = blocks(kind, 10) + hole + blocks(kind, 10)

    assert scanned(tmp_path / "row", kind, blocks(kind, 10) + bytes(340) + blocks(kind, 10)).passed
    assert "68000 bytes of zeros in a row" in scanned(tmp_path / "hole", kind, with_hole).problem
    assert scanned(tmp_path / "tokens", kind, with_hole, "token_embd.weight").passed
    assert scanned(tmp_path / "output", kind, with_hole, "output.weight").passed
    assert "all zeros" in scanned(tmp_path / "all", kind, bytes(340)).problem
    assert scanned(tmp_path / "bias", kind, bytes(340), "blk.0.attn_q.bias").passed


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_runs_of_zeros_are_counted_across_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """However the tensor is cut up, the longest run is the one that counting block by block gives."""
    monkeypatch.setattr(scan, "PIECE", size * 34)
    kind = next(kind for kind in TYPES if kind.name == "Q8_0")
    chance = random.Random(size)
    for round_ in range(20):
        zero = [chance.random() < 0.7 for _ in range(60)] + [False]
        content = b"".join(bytes(34) if flag else bytes(blocks(kind, 1)) for flag in zero)

        level = scanned(tmp_path / str(round_), kind, content)

        longest = max((len(list(run)) for flag, run in groupby(zero) if flag), default=0)
        assert level.numbers["longest_zero_run"] == 34 * longest


def test_what_is_kept_of_a_tensor_does_not_grow_with_their_number(tmp_path: Path) -> None:
    """Forty tensors of a megabyte each: after the pass their verdicts are left, not their values."""
    values = struct.pack("<f", 0.5) * (1 << 18)
    tiny.write(
        tmp_path / "many",
        {"general.architecture": "llama"},
        {f"blk.{n}.ffn_norm.weight": ((1 << 18,), "F32", values) for n in range(40)},
    )
    found = scan.Scan(gguf.read(tmp_path / "many"))

    tracemalloc.start()
    try:
        hashing.sha256(tmp_path / "many", found)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept < 1 << 20
    assert found.level().numbers["tensors"] == 40


def test_a_file_cut_off_after_its_structure_was_read(tmp_path: Path) -> None:
    """What was not seen has no verdict, whether or not there is a hash that would tell."""
    kind = next(kind for kind in TYPES if kind.name == "F32")
    path = tmp_path / "cut"
    tiny.write(path, {"general.architecture": "llama"}, {"a.weight": ((100,), kind.name, struct.pack("<f", 1.0) * 100)})
    found = scan.Scan(gguf.read(path))
    path.write_bytes(path.read_bytes()[:-100])

    hashing.sha256(path, found)

    assert "a.weight: the file was cut off while it was read" in found.level().problem
