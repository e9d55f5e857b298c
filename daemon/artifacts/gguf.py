"""Read the structure of a GGUF file from a machine we do not trust, without running any C code.

llama.cpp's own loader has had integer overflows, so this parser goes first: every count, length and dimension is
bounded as a Python integer before it is used, and so is the header as a whole, of which this process keeps eight times
its bytes and more. The file must be exactly as long as its tensors say. It is read, not mapped: a disk that fails under
mapped memory ends the process by a signal.
Format: version 3, little endian; header, metadata, tensor table, padding, tensor data.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon.artifacts.blocks import BY_CODE, BlockType, padded

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32  # bytes
MAX_ALIGNMENT = 1 << 16
MAX_HEADER = 64 << 20  # bytes; vocabulary, merges and template of the largest tokenizers take some 15 MB
MAX_KEYS = 4096
MAX_TENSORS = 1 << 16
MAX_NAME = 63  # bytes; ggml keeps names in 64 with a final zero
MAX_KEY = 1 << 10  # bytes
MAX_STRING = 4 << 20  # bytes; the longest honest ones are chat templates of some 20 kB
MAX_ARRAY = 1 << 22  # elements; the largest vocabularies have 2^18 tokens
MAX_DIMENSIONS = 4

# Metadata value types by their number in the file.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

Scalar = int | float | bool | str
Value = Scalar | list[int] | list[float] | list[bool] | list[str]


class GgufError(ValueError):
    """The file is not a whole, well-formed GGUF."""


@dataclass(frozen=True)
class Tensor:
    """One entry of the tensor table. `shape` has the row length first; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file says about itself, checked against its own length."""

    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int
    alignment: int
    size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def read(path: Path) -> Gguf:
    """Parse and check the structure of `path`. Raises GgufError for what is not exactly right, OSError as it comes."""
    with open(path, "rb") as file:
        return _Reader(file).gguf()


class _Reader:
    """A cursor over the header; every step is checked against the end of the file, and against what a header may be."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.at = file, os.fstat(file.fileno()).st_size, 0

    def gguf(self) -> Gguf:
        if self._take(4) != MAGIC:
            raise GgufError("the magic number is not GGUF")
        version = self._u32()
        if version != VERSION:
            raise GgufError(f"version {version} is not {VERSION}")
        n_tensors = self._count(MAX_TENSORS, "tensors")
        if not n_tensors:
            raise GgufError("it holds no tensors")
        n_keys = self._count(MAX_KEYS, "metadata keys")
        metadata = self._metadata(n_keys)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise GgufError(f"alignment {alignment!r} is not a power of two from 8 to {MAX_ALIGNMENT}")
        entries = [self._entry() for _ in range(n_tensors)]
        data_offset = padded(self.at, alignment)
        self._zeros(self.at, min(data_offset, self.size))
        return Gguf(metadata, self._placed(entries, data_offset, alignment), data_offset, alignment, self.size)

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self._name(MAX_KEY, "key")
            if key in metadata:
                raise GgufError(f"metadata key {key!r} appears twice")
            metadata[key] = self._value(self._u32(), key)
        return metadata

    def _value(self, kind: int, key: str) -> Value:
        if kind == STRING:
            return self._string(MAX_STRING, key)
        if kind in SCALARS:
            return self._scalars(SCALARS[kind], 1)[0]
        if kind != ARRAY:
            raise GgufError(f"{key}: value type {kind} is unknown")
        inner = self._u32()
        count = self._count(MAX_ARRAY, f"elements of {key}")
        if inner == STRING:
            return self._strings(count, key)
        if inner in SCALARS:
            return list(self._scalars(SCALARS[inner], count))
        raise GgufError(f"{key}: array of value type {inner} is not allowed")

    def _entry(self) -> tuple[str, tuple[int, ...], BlockType, int]:
        """Name, shape, type and offset (from the data section) of one tensor."""
        name = self._name(MAX_NAME, "tensor name")
        dimensions = self._u32()
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise GgufError(f"{name}: {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        code = self._u32()
        if code not in BY_CODE:
            raise GgufError(f"{name}: tensor type {code} is unknown or not accepted")
        kind = BY_CODE[code]
        if 0 in shape or math.prod(shape) // kind.elements * kind.size > self.size:
            raise GgufError(f"{name}: shape {shape} does not fit in a file of {self.size} bytes")
        if shape[0] % kind.elements:
            raise GgufError(f"{name}: rows of {shape[0]} are not whole blocks of {kind.name}")
        return name, shape, kind, self._u64()

    def _placed(
        self, entries: list[tuple[str, tuple[int, ...], BlockType, int]], data_offset: int, alignment: int
    ) -> tuple[Tensor, ...]:
        """The tensors at their places: one after another, each padded with zeros, the last one ending the file."""
        tensors: list[Tensor] = []
        names: set[str] = set()
        end = 0  # from data_offset
        for name, shape, kind, offset in entries:
            if name in names:
                raise GgufError(f"tensor {name!r} appears twice")
            if offset != end:
                raise GgufError(f"{name}: offset {offset} is not {end}, where the tensor before it ends")
            nbytes = math.prod(shape) // kind.elements * kind.size
            end = padded(offset + nbytes, alignment)
            if data_offset + end > self.size:
                raise GgufError(f"{name} ends at byte {data_offset + end} of a file of {self.size}")
            self._zeros(data_offset + offset + nbytes, data_offset + end)
            names.add(name)
            tensors.append(Tensor(name, shape, kind, data_offset + offset, nbytes))
        if data_offset + end != self.size:
            raise GgufError(f"{self.size - data_offset - end} bytes follow the last tensor")
        return tuple(tensors)

    def _zeros(self, start: int, stop: int) -> None:
        """Padding, after the header has been read."""
        if start < stop:
            self.file.seek(start)
            if any(self.file.read(stop - start)):
                raise GgufError(f"padding at byte {start} is not zero")

    def _reserve(self, length: int) -> None:
        """Let the header have `length` bytes more."""
        if length > self.size - self.at:
            raise GgufError(f"the header runs past the end of the file at byte {self.at}")
        if length > MAX_HEADER - self.at:
            raise GgufError(f"the header is longer than {MAX_HEADER} bytes")
        self.at += length

    def _take(self, length: int) -> bytes:
        self._reserve(length)
        taken = self.file.read(length)
        if len(taken) < length:
            raise GgufError("the file was cut off while it was read")
        return taken

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _count(self, limit: int, what: str) -> int:
        count = self._u64()
        if count > limit:
            raise GgufError(f"{count} {what} are over the limit of {limit}")
        return count

    def _scalars(self, form: str, count: int) -> tuple[int | float | bool, ...]:
        raw = self._take(struct.calcsize(form) * count)
        return struct.unpack(f"<{count}{form[1]}", raw)

    def _name(self, limit: int, what: str) -> str:
        """A string that messages may hold as it is."""
        name = self._string(limit, what)
        if not name.isprintable():
            raise GgufError(f"{what} {name!r} cannot be shown")
        return name

    def _string(self, limit: int, what: str) -> str:
        length = self._u64()
        if length > limit:
            raise GgufError(f"{what}: a string of {length} bytes is over the limit of {limit}")
        return self._take(length).decode("utf-8", "surrogateescape")

    def _strings(self, count: int, key: str) -> list[str]:
        """`count` strings; written flat because vocabularies have 10^5 of them."""
        read, start, room = self.file.read, self.at, min(self.size, MAX_HEADER) - self.at
        strings, used = [], 0
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            used += 8 + length
            if length > MAX_STRING or used > room:
                raise GgufError(f"{key}: a string of {length} bytes at byte {start + used - length}")
            strings.append(read(length).decode("utf-8", "surrogateescape"))
        self._reserve(used)
        if self.file.tell() != self.at:
            raise GgufError("the file was cut off while it was read")
        return strings
