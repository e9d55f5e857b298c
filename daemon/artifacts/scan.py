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
    except ImportError:
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
    """Read the tensor's scales, or its values when it is not packed, as integers: exponent and magnitude suffice."""
    if tensor.type.name in PLAIN:
        kind, exponent, magnitude, _ = PLAIN[tensor.type.name]
        columns = [np.frombuffer(view, kind, tensor.nbytes // tensor.type.size, tensor.offset)]
    else:
        kind, exponent, magnitude, _ = PLAIN["F16"]
        raw = np.frombuffer(view, "u1", tensor.nbytes, tensor.offset).reshape(-1, tensor.type.size)
        columns = [np.ascontiguousarray(raw[:, at : at + 2]).view(kind)[:, 0] for at in tensor.type.scales]
        del raw
    columns = [column & magnitude for column in columns]
    zero = np.logical_and.reduce([column == 0 for column in columns])
    return TensorScan(
        non_finite=sum(int((column >= exponent).sum()) for column in columns),
        all_zero=bool(zero.all()),
        zero_run=_longest_run(np, zero) * tensor.type.size,
        outlier=max(_outlier(np, column, tensor.type.name) for column in columns),
    )


def _longest_run(np: ModuleType, flags: Any) -> int:
    """Length of the longest run of True."""
    if not flags.any():
        return 0
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max())


def _outlier(np: ModuleType, magnitudes: Any, kind: str) -> float:
    """Largest magnitude over the median of those that are not zero. Magnitudes order as their integers do."""
    sample = magnitudes[:: max(1, len(magnitudes) // SAMPLE)]
    sample = sample[sample > 0]
    if not len(sample):
        return 0.0
    top, median = _floats(np, magnitudes.max(), kind), _floats(np, np.median(sample).astype(sample.dtype), kind)
    return float(top / median)


def _floats(np: ModuleType, bits: Any, kind: str) -> float:
    """The number whose bits these are, as a double."""
    if kind == "BF16":
        return float((np.uint32(bits) << np.uint32(16)).view("f4"))
    return float(bits.view("f4" if kind == "F32" else "f2"))
