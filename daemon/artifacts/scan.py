"""L4: no weight that cannot be a weight: infinities, zeroed tensors, holes of zeros, scales far out of line.

Block-quantised tensors are judged by their float16 scales, which one numpy pass over the mapped file reads at some
GB/s. A single zero row is legal (a padding token's embedding), so only whole tensors and long runs count.
A flipped bit inside a packed weight is invisible here: only L1 finds it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from daemon.artifacts.gguf import Gguf, Tensor
from daemon.artifacts.levels import NUMBERS, Level, failed, not_run, passed

MAX_ZERO_RUN = 1 << 16  # bytes; a lost download range is longer, an honest run of zeros is some rows
SCALE_OUTLIER = 1000.0  # times the tensor's median; honest scales reach 23, a flipped exponent bit 85,924
SAMPLE = 1 << 20  # values that the median is taken of
CHUNK = 1 << 22  # blocks looked at together; bounds the memory of the largest tensor
ROWS_MAY_BE_ZERO = "token_embd.weight"  # rows of tokens that were never trained

# Plain floats as unsigned integers: (numpy type, bits of the exponent, bits without the sign, outlier limit). Honest
# values vary more than scales do; a flipped top exponent bit multiplies by 2^16 in F16 and by 2^128 in the others.
PLAIN = {
    "F32": ("<u4", 0x7F800000, 0x7FFFFFFF, 1e9),
    "F16": ("<u2", 0x7C00, 0x7FFF, 3e4),
    "BF16": ("<u2", 0x7F80, 0x7FFF, 1e9),
}


@dataclass(frozen=True)
class TensorScan:
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
        if self.zero_run >= MAX_ZERO_RUN and tensor.name != ROWS_MAY_BE_ZERO:
            return f"{self.zero_run} bytes of zeros in a row"
        if self.outlier > limit:
            return f"a scale is {self.outlier:.0f} times the tensor's median"
        return ""


def check(path: Path, file: Gguf) -> Level:
    """L4 for one parsed GGUF; not run where numpy is missing."""
    try:
        import numpy
    except ImportError:  # the report says so, and the level counts as not run
        return not_run(NUMBERS, "numpy is not installed")
    numbers: dict[str, Any] = {"tensors": len(file.tensors), "worst_outlier": 0.0, "longest_zero_run": 0}
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for tensor in file.tensors:
            found = _scan(numpy, view, tensor)
            problem = found.problem(tensor)
            if problem:
                return failed(NUMBERS, f"{tensor.name}: {problem}", numbers)
            numbers["worst_outlier"] = max(numbers["worst_outlier"], round(found.outlier, 1))
            numbers["longest_zero_run"] = max(numbers["longest_zero_run"], found.zero_run)
    return passed(NUMBERS, numbers)


def _scan(np: ModuleType, view: mmap.mmap, tensor: Tensor) -> TensorScan:
    """One pass over the tensor's scales, or over its values when it is not packed, some megabytes at a time."""
    kind = tensor.type.name if tensor.type.name in PLAIN else "F16"
    _, exponent, magnitude, _ = PLAIN[kind]
    blocks = tensor.nbytes // tensor.type.size
    stride = max(1, blocks // SAMPLE)
    non_finite, zeros, run, longest = 0, 0, 0, 0
    width = max(1, len(tensor.type.scales))
    tops: list[Any] = [0] * width
    samples: list[list[Any]] = [[] for _ in range(width)]
    for start in range(0, blocks, CHUNK):
        columns = [column & magnitude for column in _columns(np, view, tensor, start, min(CHUNK, blocks - start))]
        zero = np.logical_and.reduce([column == 0 for column in columns])
        zeros += int(zero.sum())
        run, longest = _runs(np, zero, run, longest)
        for i, column in enumerate(columns):
            non_finite += int((column >= exponent).sum())
            tops[i] = max(tops[i], column.max())
            samples[i].append(column[::stride])
    outliers = [_outlier(np, top, np.concatenate(sample), kind) for top, sample in zip(tops, samples, strict=True)]
    return TensorScan(non_finite, zeros == blocks, longest * tensor.type.size, max(outliers))


def _columns(np: ModuleType, view: mmap.mmap, tensor: Tensor, start: int, count: int) -> list[Any]:
    """The scales of `count` blocks as unsigned integers, one array for each scale of a block; or the plain values."""
    at = tensor.offset + start * tensor.type.size
    if tensor.type.name in PLAIN:
        return [np.frombuffer(view, PLAIN[tensor.type.name][0], count, at)]
    raw = np.frombuffer(view, "u1", count * tensor.type.size, at).reshape(count, tensor.type.size)
    return [np.ascontiguousarray(raw[:, scale : scale + 2]).view("<u2")[:, 0] for scale in tensor.type.scales]


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
