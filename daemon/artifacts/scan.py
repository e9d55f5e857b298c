"""L4: no weight that cannot be a weight: infinities, zeroed tensors, holes of zeros, scales far out of line.

Block-quantised tensors are judged by their float16 scales. A single zero row is legal (a padding token's embedding), so
only whole tensors and long runs count. A flipped bit inside a packed weight is invisible here: only L1 finds it.

`Scan` reads nothing itself: it is fed by the one pass that also hashes the file (hashing.py), so that gigabytes come
from the disk once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from daemon.artifacts.gguf import Gguf, Tensor
from daemon.artifacts.levels import NUMBERS, Level, failed, passed

MAX_ZERO_RUN = 1 << 16  # bytes; a lost download range is longer, an honest run of zeros is some rows
SCALE_OUTLIER = 1000.0  # times the tensor's median; honest scales reach 23, a flipped exponent bit 85,924
SAMPLE = 1 << 20  # values that the median is taken of
PIECE = 4 << 20  # bytes of a file looked at together
ROWS_MAY_BE_ZERO = ("token_embd.weight", "output.weight")  # rows of tokens that were never trained, reserved or padding

# Plain floats as unsigned integers: (numpy type, bits of the exponent, bits without the sign, outlier limit). Honest
# values vary more than scales do; a flipped top exponent bit multiplies by 2^16 in F16 and by 2^128 in the others.
PLAIN = {
    "F32": ("<u4", 0x7F800000, 0x7FFFFFFF, 1e9),
    "F16": ("<u2", 0x7C00, 0x7FFF, 3e4),
    "BF16": ("<u2", 0x7F80, 0x7FFF, 1e9),
}


class Scan:
    """L4 of one parsed GGUF. Give every piece of `pieces`, in order, to `see`; then `level` has the verdict."""

    def __init__(self, file: Gguf) -> None:
        """Raises ImportError where numpy is missing: the level counts as not run then."""
        import numpy

        self.file = file
        self._tensors = [_TensorScan(numpy, tensor) for tensor in file.tensors]

    def pieces(self) -> Iterator[tuple[int, _TensorScan | None]]:
        """Lengths that cover the file from its first byte to its last, each with whom it concerns: whole blocks."""
        at = 0
        for scan in self._tensors:
            yield from ((length, None) for length in _cut(scan.tensor.offset - at, 1))
            yield from ((length, scan) for length in _cut(scan.tensor.nbytes, scan.tensor.type.size))
            at = scan.tensor.offset + scan.tensor.nbytes
        yield from ((length, None) for length in _cut(self.file.size - at, 1))

    def level(self) -> Level:
        numbers: dict[str, Any] = {"tensors": len(self._tensors), "worst_outlier": 0.0, "longest_zero_run": 0}
        for scan in self._tensors:
            if (found := scan.found) is None:
                return failed(NUMBERS, f"{scan.tensor.name}: the file was cut off while it was read", numbers)
            if problem := found.problem(scan.tensor):
                return failed(NUMBERS, f"{scan.tensor.name}: {problem}", numbers)
            numbers["worst_outlier"] = max(numbers["worst_outlier"], round(found.outlier, 1))
            numbers["longest_zero_run"] = max(numbers["longest_zero_run"], found.zero_run)
        return passed(NUMBERS, numbers)


@dataclass(frozen=True)
class Found:
    """What one pass over a tensor found. `zero_run` is in bytes of the file, `outlier` is maximum over median."""

    non_finite: int
    all_zero: bool
    zero_run: int
    outlier: float

    def problem(self, tensor: Tensor) -> str:
        limit = PLAIN[tensor.type.name][3] if tensor.type.name in PLAIN else SCALE_OUTLIER
        if self.non_finite:
            return f"{self.non_finite} values or scales are not finite"
        if self.all_zero and not tensor.name.endswith(".bias"):
            return "all zeros"
        if self.zero_run >= MAX_ZERO_RUN and tensor.name not in ROWS_MAY_BE_ZERO:
            return f"{self.zero_run} bytes of zeros in a row"
        if self.outlier > limit:
            return f"a scale is {self.outlier:.0f} times the tensor's median"
        return ""


class _TensorScan:
    """What has been seen of one tensor's scales so far, or of its values when it is not packed.

    `found` is the verdict, as soon as the whole tensor was seen; the samples it rests on are let go then, since those
    of a large model take a gigabyte together.
    """

    def __init__(self, np: ModuleType, tensor: Tensor) -> None:
        self.tensor, self._np = tensor, np
        self._kind = tensor.type.name if tensor.type.name in PLAIN else "F16"
        self._blocks = tensor.nbytes // tensor.type.size
        self._stride = -(-self._blocks // SAMPLE)
        self._left = self._blocks
        self.found: Found | None = None
        self._non_finite, self._zeros, self._run, self._longest = 0, 0, 0, 0
        width = max(1, len(tensor.type.scales))
        self._tops: list[Any] = [0] * width
        self._samples: list[list[Any]] = [[] for _ in range(width)]

    def see(self, piece: memoryview) -> None:
        """The next whole blocks."""
        np = self._np
        _, exponent, magnitude, _ = PLAIN[self._kind]
        columns = [column & magnitude for column in self._columns(piece)]
        zero = np.logical_and.reduce([column == 0 for column in columns])
        self._zeros += int(zero.sum())
        self._run, self._longest = _runs(np, zero, self._run, self._longest)
        for i, column in enumerate(columns):
            self._non_finite += int((column >= exponent).sum())
            self._tops[i] = max(self._tops[i], column.max())
            self._samples[i].append(column[:: self._stride].copy())  # a view would keep the whole column
        self._left -= len(zero)
        if not self._left:
            self.found = self._concluded()
            self._samples.clear()

    def _concluded(self) -> Found:
        np, samples = self._np, [self._np.concatenate(sample) for sample in self._samples]
        outlier = max(_outlier(np, top, sample, self._kind) for top, sample in zip(self._tops, samples, strict=True))
        return Found(self._non_finite, self._zeros == self._blocks, self._longest * self.tensor.type.size, outlier)

    def _columns(self, piece: memoryview) -> list[Any]:
        """The scales as unsigned integers, one array for each scale of a block; or the plain values."""
        np, kind = self._np, self.tensor.type
        if kind.name in PLAIN:
            return [np.frombuffer(piece, PLAIN[kind.name][0])]
        raw = np.frombuffer(piece, "u1").reshape(-1, kind.size)
        return [np.ascontiguousarray(raw[:, scale : scale + 2]).view("<u2")[:, 0] for scale in kind.scales]


def _cut(length: int, unit: int) -> Iterator[int]:
    """`length` in pieces of whole units, of some megabytes each."""
    most = max(1, PIECE // unit) * unit
    while length > 0:
        yield min(length, most)
        length -= most


def _runs(np: ModuleType, flags: Any, run: int, longest: int) -> tuple[int, int]:
    """The run of True that is open after `flags`, and the longest one so far; `run` was open before them."""
    ends = np.flatnonzero(~flags) if flags.any() else None
    if ends is None:
        return 0, max(longest, run)
    if not len(ends):
        return run + len(flags), max(longest, run + len(flags))
    inner = int(np.diff(ends).max(initial=1)) - 1
    still_open = len(flags) - 1 - int(ends[-1])
    return still_open, max(longest, run + int(ends[0]), inner, still_open)


def _outlier(np: ModuleType, top: Any, sample: Any, kind: str) -> float:
    """Largest magnitude over the median of those that are not zero. Magnitudes order as their integers do."""
    sample = sample[sample > 0]
    if not len(sample):
        return 0.0
    return _floats(np, top, kind) / _floats(np, np.median(sample).astype(sample.dtype), kind)


def _floats(np: ModuleType, bits: Any, kind: str) -> float:
    """The number whose bits these are, as a double."""
    if kind == "BF16":
        return float((np.uint32(bits) << np.uint32(16)).view("f4"))
    return float(bits.view("f4" if kind == "F32" else "f2"))
