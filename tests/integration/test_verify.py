"""Verification of a real artifact set, and of everything that must never pass as one.

Each damage is done to the Q8_0 of a set that the payload made. Honest damage leaves the manifest as it was; a *lie*
also rewrites the manifest to fit the damaged file, as a dishonest machine would, so that the hash cannot help.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from nano_artifacts import NanoArtifacts, nano_artifacts

from daemon.artifacts import gguf, levels, tiny
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.gguf import Tensor
from daemon.artifacts.verify import Report, verify
from remote_payload.contract import ArtifactFile, Manifest, Role

Q8 = "forex-Q8_0.gguf"


@pytest.fixture(scope="module")
def made() -> NanoArtifacts:
    """The good set and its impostors."""
    return nano_artifacts()


@dataclass
class Incoming:
    """A copy of the good set with only its Q8_0, to damage and verify."""

    folder: Path
    base: Path
    manifest: Manifest
    others: dict[str, Path]

    @property
    def model(self) -> Path:
        return self.folder / Q8

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in gguf.read(self.model).tensors if tensor.name == name)

    def patch(self, at: int, content: bytes) -> None:
        with open(self.model, "r+b") as file:
            file.seek(at)
            file.write(content)

    def bytes_at(self, at: int, count: int) -> bytes:
        return self.model.read_bytes()[at : at + count]

    def change(self, path: str, **changes: object) -> None:
        """Change the manifest's entry of one file."""
        files = [dataclasses.replace(f, **changes) if f.path == path else f for f in self.manifest.files]
        self.manifest = dataclasses.replace(self.manifest, files=files)

    def lie(self) -> None:
        """Make the manifest say what the damaged file is."""
        content = self.model.read_bytes()
        self.change(f"run/out/{Q8}", size=len(content), sha256=hashlib.sha256(content).hexdigest())

    async def verify(self, depth: str = "full") -> Report:
        return await verify(self.folder, self.manifest, BaseIdentity("nano", self.base), depth, lambda line: None)  # type: ignore[arg-type]


@pytest.fixture
def incoming(made: NanoArtifacts, tmp_path: Path) -> Incoming:
    """What a finished download leaves."""
    folder = tmp_path / ".incoming"
    shutil.copytree(made.out, folder)
    files = [file for file in made.manifest.files if file.quant in (None, "Q8_0")]
    return Incoming(folder, made.base, dataclasses.replace(made.manifest, files=files), made.others)


async def test_the_good_set_passes_every_level(made: NanoArtifacts) -> None:
    """Both quantisations pass all six levels; the local divergence is the box's, far from the base model's."""
    said: list[str] = []

    report = await verify(made.out, made.manifest, BaseIdentity("nano", made.base), "full", said.append)

    assert report.passed, report.problem
    assert len(report.levels) == len(said) == 6
    assert report.warnings == ()
    by_box = {quality.quant: quality for quality in made.manifest.quality}
    for quant, scores in report.levels[5].numbers.items():
        assert scores["kl_mean"] == pytest.approx(by_box[quant].kl_mean, rel=0.5, abs=1e-4)
        assert scores["base_kl_mean"] > 10 * scores["kl_mean"]
    assert report.sample


def cut_last_byte(it: Incoming) -> None:
    os.truncate(it.model, it.model.stat().st_size - 1)


def cut_half(it: Incoming) -> None:
    os.truncate(it.model, it.model.stat().st_size // 2)


def append_junk(it: Incoming) -> None:
    with open(it.model, "ab") as file:
        file.write(b"junk" * 16)


def flip_weight_bit(it: Incoming) -> None:
    at = it.tensor("blk.0.ffn_up.weight").offset + 34 * 100 + 2  # one int8 weight of a block
    it.patch(at, bytes([it.bytes_at(at, 1)[0] ^ 1]))


def flip_scale_exponent(it: Incoming) -> None:
    at = it.tensor("blk.0.ffn_up.weight").offset + 34 * 100 + 1  # high byte of a float16 scale
    it.patch(at, bytes([it.bytes_at(at, 1)[0] ^ 0x40]))


def nan_scale(it: Incoming) -> None:
    it.patch(it.tensor("blk.0.ffn_up.weight").offset + 34 * 100, struct.pack("<H", 0x7E00))


def nan_norm(it: Incoming) -> None:
    it.patch(it.tensor("output_norm.weight").offset, struct.pack("<f", float("nan")))


def zero_tensor(it: Incoming) -> None:
    tensor = it.tensor("blk.1.attn_v.weight")
    it.patch(tensor.offset, bytes(tensor.nbytes))


def zero_hole(it: Incoming) -> None:
    it.patch(it.tensor("blk.0.ffn_down.weight").offset + 340, bytes(70_000))


def swap_tensors(it: Incoming) -> None:
    one, other = it.tensor("blk.0.attn_q.weight"), it.tensor("blk.1.attn_q.weight")
    contents = it.bytes_at(one.offset, one.nbytes), it.bytes_at(other.offset, other.nbytes)
    it.patch(one.offset, contents[1])
    it.patch(other.offset, contents[0])


def change_rope_base(it: Incoming) -> None:
    key = b"llama.rope.freq_base"
    it.patch(it.model.read_bytes().index(key) + len(key) + 4, struct.pack("<f", 1234.0))


def change_token(it: Incoming) -> None:
    """Two neighbouring tokens of one length change places."""
    raw = it.model.read_bytes()
    first, second = (struct.pack("<Q", 1) + letter for letter in (b"A", b"B"))
    at = raw.index(first + second)
    it.patch(at, second + first)


def change_template(it: Incoming) -> None:
    raw = it.model.read_bytes()
    at = raw.index(b"im_start", raw.index(b"tokenizer.chat_template"))
    it.patch(at, b"im_stars")


def tiny_model(it: Incoming) -> None:
    tiny.write_tiny(it.model)


def bad_magic(it: Incoming) -> None:
    it.patch(0, b"FUGG")


def offset_2_62(it: Incoming) -> None:
    name = b"output_norm.weight"
    it.patch(it.model.read_bytes().index(name) + len(name) + 4 + 8 + 4, struct.pack("<Q", 1 << 62))


def dimension_2_40(it: Incoming) -> None:
    name = b"output_norm.weight"
    it.patch(it.model.read_bytes().index(name) + len(name) + 4, struct.pack("<Q", 1 << 40))


def keys_2_60(it: Incoming) -> None:
    it.patch(16, struct.pack("<Q", 1 << 60))


def become(name: str) -> Callable[[Incoming], None]:
    def other(it: Incoming) -> None:
        shutil.copyfile(it.others[name], it.model)

    other.__name__ = f"become_{name}"
    return other


L0, L1, L2, L3, L4, L5 = (
    levels.PRESENCE, levels.BYTES, levels.STRUCTURE, levels.IDENTITY, levels.NUMBERS, levels.BEHAVIOUR,
)  # fmt: skip

# Damage; the level that finds it when the manifest is honest; the level when the manifest lies; words of the latter.
CONTROLS = [
    (cut_last_byte, L0, L2, "of a file of"),
    (cut_half, L0, L0, "its tensors take"),
    (append_junk, L0, L2, "64 bytes follow the last tensor"),
    (flip_scale_exponent, L1, L4, "times the tensor's median"),
    (nan_scale, L1, L4, "not finite"),
    (nan_norm, L1, L4, "not finite"),
    (zero_tensor, L1, L4, "all zeros"),
    (zero_hole, L1, L4, "zeros in a row"),
    (swap_tensors, L1, L5, "nats from the trained model"),
    (change_rope_base, L1, L3, "rope.freq_base is 1234.0"),
    (change_token, L1, L3, "the base model has 'A'"),
    (change_template, L1, L3, "the chat template is not the base model's"),
    (become("opposite"), L1, L5, "nats from the trained model"),
    (become("half"), L1, L5, "nats from the trained model"),
    (become("base"), L1, L5, "nats from the trained model"),
    (tiny_model, L0, L0, "its tensors take"),
    (bad_magic, L1, L2, "magic"),
    (offset_2_62, L1, L2, "offset"),
    (dimension_2_40, L1, L2, "does not fit"),
    (keys_2_60, L1, L2, "over the limit"),
]
NAMES = [row[0].__name__ for row in CONTROLS]


@pytest.mark.parametrize(("damage", "level"), [(row[0], row[1]) for row in CONTROLS], ids=NAMES)
async def test_damage_under_an_honest_manifest(
    incoming: Incoming, damage: Callable[[Incoming], None], level: str
) -> None:
    """Whatever happens to the bytes on the way home is found by size or hash, before anything reads the file."""
    damage(incoming)

    report = await incoming.verify()

    assert not report.passed
    assert report.levels[-1].name == level, report.problem


@pytest.mark.parametrize(("damage", "level", "says"), [(row[0], *row[2:]) for row in CONTROLS], ids=NAMES)
async def test_damage_that_the_manifest_covers_up(
    incoming: Incoming, damage: Callable[[Incoming], None], level: str, says: str
) -> None:
    """With a manifest that fits the damaged file, the level that is meant for this damage finds and names it."""
    damage(incoming)
    incoming.lie()

    report = await incoming.verify()

    assert not report.passed
    assert report.levels[-1].name == level, report.problem
    assert says in report.problem
    assert all(earlier.passed for earlier in report.levels[:-1])


async def test_only_the_hash_finds_a_single_bit(incoming: Incoming) -> None:
    """One flipped bit of one weight: L1 finds it, and no other level could."""
    flip_weight_bit(incoming)

    found = await incoming.verify()
    incoming.lie()
    covered_up = await incoming.verify()

    assert found.levels[-1].name == L1
    assert covered_up.passed


def remove(it: Incoming) -> None:
    it.model.unlink()


def link_out(it: Incoming) -> None:
    elsewhere = it.folder.with_name("elsewhere.gguf")
    it.model.rename(elsewhere)
    it.model.symlink_to(elsewhere)


def link_folder(it: Incoming) -> None:
    (it.folder / "adapter").rename(it.folder.with_name("adapter"))
    (it.folder / "adapter").symlink_to(it.folder.with_name("adapter"))


def make_sparse(it: Incoming) -> None:
    size = it.model.stat().st_size
    it.model.write_bytes(b"GGUF")
    os.truncate(it.model, size)


def add(path: str, role: Role = Role.LOG) -> Callable[[Incoming], None]:
    def named(it: Incoming) -> None:
        extra = ArtifactFile(path, role, 1, "0" * 64, ["0" * 64])
        it.manifest = dataclasses.replace(it.manifest, files=[*it.manifest.files, extra])

    return named


def no_gguf(it: Incoming) -> None:
    files = [file for file in it.manifest.files if file.role is not Role.GGUF]
    it.manifest = dataclasses.replace(it.manifest, files=files)


PRESENCE = [
    ("missing", remove, "missing"),
    ("symbolic link", link_out, "symbolic link"),
    ("linked folder", link_folder, "symbolic link"),
    ("sparse", make_sparse, "holes"),
    ("pickle", add("run/out/model.pkl"), "accepted kinds"),
    ("python", add("run/out/tokenizer/code.py"), "accepted kinds"),
    ("parent folder", add("run/out/../../x.json"), "plain relative path"),
    ("absolute", add("/etc/x.json"), "plain relative path"),
    ("outside out", add("run/events.jsonl"), "not under run/out"),
    ("our own name", add("run/out/receipt.json"), "needs for itself"),
    ("named twice", add(f"run/out/{Q8.upper()}", Role.GGUF), "named twice"),
    ("GGUF by another name", add("run/out/notes.txt", Role.GGUF), "does not fit"),
    ("no GGUF", no_gguf, "no GGUF"),
]


@pytest.mark.parametrize(("damage", "says"), [row[1:] for row in PRESENCE], ids=[row[0] for row in PRESENCE])
async def test_what_is_not_plainly_here_is_refused(
    incoming: Incoming, damage: Callable[[Incoming], None], says: str
) -> None:
    """Files that are missing, links, holes, or of names and kinds that we never take end at L0."""
    damage(incoming)

    report = await incoming.verify()

    assert [level.name for level in report.levels] == [L0]
    assert says in report.problem


async def test_a_reference_that_is_not_sane_fails(incoming: Incoming) -> None:
    """Reference answers are data from the box: probabilities that do not add up are refused, not scored."""
    path = incoming.folder / "reference.jsonl"
    content = re.sub(rb'"tail": [-.0-9]+', b'"tail": -0.0', path.read_bytes(), count=1)
    path.write_bytes(content)
    incoming.change("run/out/reference.jsonl", size=len(content), sha256=hashlib.sha256(content).hexdigest())

    report = await incoming.verify()

    assert report.levels[-1].name == L5
    assert "add up to" in report.problem


async def test_hash_depth_claims_no_behaviour(incoming: Incoming) -> None:
    """At depth "hash" the base model passes L0 to L4, and the report says that L5 was not run."""
    become("base")(incoming)
    incoming.lie()

    report = await incoming.verify("hash")

    assert report.passed
    assert report.depth == "hash"
    assert not report.levels[5].passed and not report.levels[5].ran
    assert report.levels[5].problem.startswith("not run")


async def test_hash_depth_still_fails_what_it_can_see(incoming: Incoming) -> None:
    """Depth "hash" forgives a level that could not be run, not one that ran and failed."""
    zero_tensor(incoming)
    incoming.lie()

    report = await incoming.verify("hash")

    assert not report.passed
    assert report.levels[-1].name == L4
