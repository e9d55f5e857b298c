"""Q8_0 in llama.cpp's own C, in place of the converter's numpy, which comes to the same bytes.

numpy takes a dozen small steps for every 16 rows and holds the interpreter between them, so that more threads hardly
help: of a 7B that was most of a minute. A call into C lets go of it.
"""

from __future__ import annotations

import ctypes
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK, BLOCK_BYTES = 32, 34  # weights that share a scale; the scale as float16 and the weights as int8


def take_over(gguf: Any, llama: ModuleType) -> None:
    """Have Q8_0 of the converter's package computed by llama.cpp; it stays a promise until it is written."""
    kind, number = gguf.quants.Q8_0, int(gguf.GGMLQuantizationType.Q8_0)
    chunk = llama.llama_cpp._lib.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    # type, source, result, first row, rows, weights a row, importance of the weights
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantised(weights: NDArray[Any]) -> NDArray[np.uint8]:
        """Weights of shape (..., n) as bytes of shape (..., n / 32 * 34)."""
        rows = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, weights.shape[-1])
        out = np.empty((len(rows), rows.shape[1] // BLOCK * BLOCK_BYTES), np.uint8)
        chunk(number, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
        return out.reshape(*weights.shape[:-1], -1)

    shape = partial(gguf.quants.quant_shape_to_byte_shape, quant_type=gguf.GGMLQuantizationType.Q8_0)
    promised = gguf.LazyNumpyTensor._wrap_fn(quantised, meta_noop=(np.uint8, shape))

    def quantize(tensor: Any) -> Any:
        if not kind.can_quantize(tensor):  # the converter then takes another type
            raise gguf.quants.QuantError(f"rows of {tensor.shape[-1]} weights do not divide into blocks of {BLOCK}")
        return promised(tensor)

    kind.quantize = staticmethod(quantize)
