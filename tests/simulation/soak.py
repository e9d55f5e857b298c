"""Seeds in volume, on as many cores as there are; the result is one line of the committed ledger.

    python -m tests.simulation.soak --tier decision --seeds 0:1000000 --jobs 32 --record
    python -m tests.simulation.soak --tier full --next 20000 --jobs 32 --minutes 9 --record

`--next` goes on where the ledger ends. What `--minutes` cuts off is not in the line: it names the seeds that were run
to their end. Exit code 1 when one of them violated an invariant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.ledger import commit
from tests.simulation import coverage
from tests.simulation.decision import __main__ as decision
from tests.simulation.full import __main__ as full
from tests.simulation.full import cells as full_cells
from tests.simulation.full.seeds import aimed, twins
from tests.simulation.portion import Portion, portions

LEDGER = Path(__file__).with_name("ledger.jsonl")


@dataclass(frozen=True)
class Tier:
    """`size`: seeds that a process takes at a time, some ten seconds of work; `table`: the cells that it can reach."""

    run: Callable[[range], Portion]
    size: int
    table: Callable[[], Collection[Any]]


TIERS = {
    "decision": Tier(decision.run_range, decision.PORTION, coverage.cells),
    "full": Tier(full.run_range, full.PORTION, full_cells.cells),
    "aimed": Tier(partial(full.run_range, run=aimed), full.PORTION, full_cells.cells),  # the full tier, cell by cell
    "twins": Tier(
        partial(full.run_range, run=twins), full.PORTION, full_cells.cells
    ),  # the full tier, two jobs at once
}


def soak(tier: str, seeds: range, jobs: int, minutes: float | None) -> Portion:
    """As many of `seeds` as the minutes allow, from the first on; bad ones are said at once."""
    whole, begun = Portion(), time.monotonic()
    until = begun + 60 * minutes if minutes is not None else None
    for portion in portions(TIERS[tier].run, seeds, TIERS[tier].size, jobs, until):
        whole.add(portion)
        for seed, problem in portion.violations:
            print(f"seed {seed}: {problem}", flush=True)
    return whole


def entry(tier: str, first: int, whole: Portion, jobs: int, seconds: float, name: str) -> dict[str, Any]:
    """The line of the ledger. `violated` names the first invariant of every bad seed."""
    table = TIERS[tier].table()
    return {
        "commit": name,
        "tier": tier,
        "seeds": f"{first}:{first + whole.seeds}",
        "violated": {str(seed): problem.split(":")[0].split(" ")[0] for seed, problem in whole.violations},
        "cells": f"{len(whole.cells & set(table))}/{len(table)}",
        "seconds": round(seconds),
        "jobs": jobs,
        "date": datetime.now(UTC).date().isoformat(),
    }


def next_seed(tier: str, ledger: Path = LEDGER) -> int:
    """The first seed that no line covers."""
    lines = map(json.loads, ledger.read_text().splitlines() if ledger.exists() else ())
    return max((int(line["seeds"].split(":")[1]) for line in lines if line["tier"] == tier), default=0)


def _range(text: str) -> range:
    first, last = map(int, text.split(":"))
    return range(first, last)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=TIERS, required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", type=_range, metavar="A:B", help="from A up to, not with, B")
    which.add_argument("--next", type=int, metavar="N", help="N seeds from where the ledger ends")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; one a core by default")
    parser.add_argument("--minutes", type=float, help="take no more seeds after so long")
    parser.add_argument("--record", action="store_true", help="add the line to the ledger; it is printed in any case")
    parser.add_argument("--missing", action="store_true", help="list every cell that was not reached")
    parser.add_argument("--commit", help="what is run, where git cannot say it")
    asked = parser.parse_args(arguments)
    name = asked.commit or commit("tests/simulation")
    seeds = asked.seeds or range(next_seed(asked.tier), next_seed(asked.tier) + asked.next)
    begun = time.monotonic()
    whole = soak(asked.tier, seeds, asked.jobs, asked.minutes)
    seconds = time.monotonic() - begun
    line = json.dumps(entry(asked.tier, seeds.start, whole, asked.jobs, seconds, name))
    print(line)
    if asked.missing:
        print(*sorted(" | ".join(cell) for cell in set(TIERS[asked.tier].table()) - whole.cells), sep="\n")
    speed = whole.seeds / seconds / asked.jobs
    print(f"{whole.seeds} seeds, {len(whole.violations)} bad, {speed:.2f} a second and process")
    if asked.record:
        with LEDGER.open("a", encoding="utf-8") as ledger:
            ledger.write(line + "\n")
    return 1 if whole.violations else 0


if __name__ == "__main__":
    sys.exit(main())
