"""All-reduce among the ranks that were started: is the sum right, and how fast. One JSON line from the first.

Started by the preflight, once directly and once with the cards kept from reaching each other directly.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import distributed

from remote_payload import collective
from remote_payload.contract import Exit
from remote_payload.ranks import Rank, conclude

NUMBERS = {"cuda": 25_000_000, "cpu": 250_000}  # float32, 100 MB of them on cards
ROUNDS = 5


def main() -> int:
    rank, device = Rank.own(), "cuda" if torch.cuda.is_available() else "cpu"
    collective.join(rank)
    ours = torch.full((NUMBERS[device],), float(rank.number + 1), device=device)
    distributed.all_reduce(ours)
    if not bool((ours == rank.size * (rank.size + 1) / 2).all()):
        print(f"rank {rank.number}: wrong sum", file=sys.stderr)
        return Exit.PREFLIGHT
    began = time.perf_counter()
    for _ in range(ROUNDS):
        distributed.all_reduce(ours)
    ours[0].item()  # the rounds are over once a number of the last can be read
    rate = ours.nbytes * ROUNDS / (time.perf_counter() - began)
    collective.leave()
    if rank.is_first:
        print(json.dumps({"gb_s": round(rate / 1e9, 2)}), flush=True)
    return conclude(Exit.OK)


if __name__ == "__main__":
    sys.exit(main())
