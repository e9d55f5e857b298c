"""A copy of a good artifact set, and every way in which it can be damaged.

Each is done to the Q8_0. Honest damage leaves the manifest as it was; a *lie* also rewrites the manifest to fit the
damaged file, as a dishonest machine would, so that the hash cannot help.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daemon.artifacts import gguf, tiny
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.gguf import Tensor
from daemon.artifacts.verify import Report, verify
from remote_payload.contract import ArtifactFile, Manifest, Role

Q8 = "forex-Q8_0.gguf"


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
    """A lost range of 256 KiB, or of half a tensor that is smaller."""
    tensor = it.tensor("blk.0.ffn_down.weight")
    it.patch(tensor.offset + 340, bytes(min(1 << 18, tensor.nbytes // 2)))


def noise(share: float) -> Callable[[Incoming], None]:
    """Weights of another training: to every projection is added a random matrix of rank 16, `share` of its size."""

    def another_adapter(it: Incoming) -> None:
        chance = np.random.default_rng(16)
        content = np.fromfile(it.model, "u1")
        for tensor in gguf.read(it.model).tensors:
            if tensor.type.name != "Q8_0" or not tensor.name.startswith("blk."):
                continue
            blocks = content[tensor.offset : tensor.offset + tensor.nbytes].reshape(-1, 34)
            scales = blocks[:, :2].copy().view("<f2").astype("f4")
            weights = (blocks[:, 2:].copy().view("i1") * scales).reshape(tensor.shape[1], tensor.shape[0])
            added = chance.standard_normal((weights.shape[0], 16)) @ chance.standard_normal((16, weights.shape[1]))
            changed = weights + added * (share * np.linalg.norm(weights) / np.linalg.norm(added))
            rows = changed.reshape(-1, 32).astype("f4")
            scales = (np.abs(rows).max(1, keepdims=True) / 127).astype("<f2")
            packed = np.rint(rows / np.maximum(scales.astype("f4"), 1e-12)).clip(-127, 127).astype("i1")
            blocks[:, :2], blocks[:, 2:] = scales.view("u1"), packed.view("u1")
        content.tofile(it.model)

    another_adapter.__name__ = f"noise_{share:.0%}"
    return another_adapter


def another_quant(it: Incoming) -> None:
    """The Q4_K_M under the Q8_0's name."""
    shutil.copyfile(it.folder / "forex-Q4_K_M.gguf", it.model)


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

    other.__name__ = f"become_{name}".replace(" ", "_")
    return other


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
