"""The compiled half of llama.cpp, through llama-cpp-python: quantise a GGUF, and score one.

llama-cpp-python compiles for minutes, so `bootstrap.sh` may still be building it while the model trains; `ready` waits
for that. Q8_0 needs none of this to be written, only to be scored.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from remote_payload.contract import Exit
from remote_payload.quants import Quant
from remote_payload.script import ScriptFailed

BUILD_LOCK = "llama-build.lock"  # under the root; held by the background build for as long as it lives
BUILD_LOG = "llama-build.log"
BUILD_PATIENCE_S = 1800
BUILD_POLL_S = 0.5
CPUS = len(os.sched_getaffinity(0))


def available(root: Path, patience_s: float = BUILD_PATIENCE_S) -> ModuleType | None:
    """llama_cpp, after waiting for a build in the background; None when it is not to be had, or not yet."""
    try:
        wait_for_build(root, patience_s)
        import llama_cpp
    except (ImportError, TimeoutError):  # the caller says what is not done without it
        return None
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)  # its WARN is our ERROR
    module: ModuleType = llama_cpp
    return module


def wait_for_build(root: Path, patience_s: float = BUILD_PATIENCE_S) -> None:
    """Return when no build holds the lock. Raises TimeoutError when patience is at its end."""
    lock = root / BUILD_LOCK
    if not lock.exists():
        return
    deadline = time.monotonic() + patience_s
    with open(lock) as f:
        while True:
            try:
                return fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:  # the build goes on
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{BUILD_LOCK} is still held after {patience_s:g} s") from error
                time.sleep(BUILD_POLL_S)


@dataclass(frozen=True)
class Quantiser:
    """llama_model_quantize on all cores."""

    llama: ModuleType

    @classmethod
    def ready(cls, root: Path) -> Quantiser:
        """Raises ScriptFailed when llama-cpp-python could not be built."""
        llama = available(root)
        if llama is None:
            raise ScriptFailed(Exit.GGUF_GATE, f"K-quants need llama-cpp-python, which is not here; see {BUILD_LOG}")
        return cls(llama)

    def write(self, source: Path, path: Path, quant: Quant) -> None:
        """Write `path` from a 16-bit GGUF. Raises ScriptFailed when llama.cpp refuses."""
        params = self.llama.llama_model_quantize_default_params()
        params.nthread, params.ftype = CPUS, quant.ftype
        failed = self.llama.llama_model_quantize(bytes(source), bytes(path), ctypes.byref(params))
        if failed:
            raise ScriptFailed(Exit.GGUF_GATE, f"llama.cpp could not quantise {source.name} to {quant.name}: {failed}")


class Scorer:
    """One GGUF, loaded: its tokenizer, and the logits it gives at every position of a sequence."""

    def __init__(self, llama: ModuleType, path: Path, context: int) -> None:
        # One thread fewer than cores: llama.cpp's threads spin while they wait, and a busy core then stalls them all.
        self._llama = llama.Llama(
            str(path), n_ctx=context, n_batch=context, logits_all=True, n_threads=max(1, CPUS - 1), verbose=False
        )

    def tokens(self, text: str) -> list[int]:
        """The ids of `text` with special tokens recognised and none added."""
        ids: list[int] = self._llama.tokenize(text.encode(), add_bos=False, special=True)
        return ids

    def log_probabilities(self, ids: list[int], start: int) -> np.ndarray:
        """float64 (len(ids) - start, vocabulary): row i is the natural log of the distribution over ids[start + i]."""
        self._llama.reset()
        self._llama.eval(ids)
        logits = self._llama.scores[start - 1 : len(ids) - 1].astype(np.float64)
        peak = logits.max(axis=1, keepdims=True)
        logs: np.ndarray = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        return logs

    def close(self) -> None:
        self._llama.close()
