"""Computing the tensors of a GGUF on every core, while the converter's writer takes them in their order.

The converter holds a tensor as a promise and keeps it until the moment of writing, one after another: the merge and
quantisation of a 7B then take a single core over a minute. The arithmetic stays the converter's own, tensor by
tensor, so the file has the same bytes; only who computes it and when is different.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import torch

# So many tensors are computed at once, the largest of a 7B at about 4 GB, most under 0.6; and so many for each thread
# may be under way or wait for the writer, who must not find the others idle while he waits for a large one.
THREADS = min(16, len(os.sched_getaffinity(0)))
WAITING = 2


class Early:
    """A tensor under way in another thread, with what the writer asks of one: its size, and its bytes in their turn."""

    def __init__(self, nbytes: int, computed: Future[Any], start_next: Callable[[], None]) -> None:
        self.nbytes = nbytes
        self._computed, self._start_next = computed, start_next

    def tofile(self, file: BinaryIO) -> None:
        self._computed.result().tofile(file)
        self._start_next()


@contextlib.contextmanager
def computed_ahead(entries: Iterable[Any], compute: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block every `entry.tensor` becomes an Early in its turn; `compute` makes an array of the promise.

    What `compute` raises is raised where the writer asks for that tensor.
    """
    waiting = deque(entries)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the cores are taken by tensors; each product would take all of them once more
    with ThreadPoolExecutor(THREADS) as pool:

        def start_next() -> None:
            if waiting:
                entry = waiting.popleft()
                entry.tensor = Early(entry.tensor.nbytes, pool.submit(compute, entry.tensor), start_next)

        try:
            for _ in range(WAITING * THREADS):
                start_next()
            yield
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
