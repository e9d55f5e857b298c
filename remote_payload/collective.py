"""What the ranks of one stage say to each other, beside the gradients. Alone, a process only talks to itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from remote_payload.contract import Exit
from remote_payload.ranks import Rank
from remote_payload.script import ScriptFailed

# A rank that does not answer for so long is lost, and the others end. The library's own half an hour would cost more
# than the stage; sealing the largest checkpoint, the longest that one rank lets the others wait, takes seconds.
PATIENCE_S = 75

T = TypeVar("T")


def join(rank: Rank) -> None:
    """Meet the other ranks, each with its own card where there are cards. May be called again."""
    if rank.size == 1 or distributed.is_initialized():
        return
    on_card = torch.cuda.is_available()
    if on_card:
        torch.cuda.set_device(rank.number)
    distributed.init_process_group("nccl" if on_card else "gloo", timeout=timedelta(seconds=PATIENCE_S))


def any_says(flag: bool) -> bool:
    """Whether it is true on any rank; every rank must ask."""
    if not distributed.is_initialized():
        return flag
    return total(flag) > 0


@contextmanager
def exchanging() -> Iterator[None]:
    """Raises ScriptFailed (72) for an exchange in it that failed because another rank is gone or silent."""
    try:
        yield
    except RuntimeError as error:  # gloo's have no type of their own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        lost = f"another rank is gone, or did not answer for {PATIENCE_S} s"
        raise ScriptFailed(Exit.RANK_LOST, lost) from error


def total(number: int) -> int:
    """Its sum over all ranks; every rank must ask."""
    return round(sum_of([number])[0])


def mean(numbers: Sequence[float]) -> list[float]:
    """Of each, over all ranks; every rank must ask."""
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    return [number / ranks for number in sum_of(numbers)]


def sum_of(numbers: Sequence[float]) -> list[float]:
    """Of each, over all ranks; every rank must ask. In 64 bits, which hold a count of tokens to the last one."""
    if not distributed.is_initialized():
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    distributed.all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def from_first(value: T) -> T:
    """The first rank's value; every rank must ask. Ranks run one program on one machine, so pickling is no danger."""
    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all() -> None:
    """Every file that a rank has written before is there once this returns."""
    if distributed.is_initialized():
        distributed.barrier()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def leave() -> None:
    """After the last exchange: without it a rank that ends late would be taken for a lost one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
