"""What the ranks of one stage say to each other, beside the gradients. Alone, a process only talks to itself."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from remote_payload.ranks import Rank

# A rank that does not answer for so long is lost, and the others end. The library's own half an hour would cost more
# than the stage; sealing the largest checkpoint, the longest that one rank lets the others wait, takes seconds.
PATIENCE_S = 90

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
    said = torch.tensor(int(flag), device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(said, distributed.ReduceOp.MAX)
    return bool(said.item())


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


def leave() -> None:
    """After the last exchange: without it a rank that ends late would be taken for a lost one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
