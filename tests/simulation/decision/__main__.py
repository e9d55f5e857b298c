"""Run seeds of the decision tier.

    python -m tests.simulation.decision --seeds 0:20000 [--jobs N]    # exit 1 on a violation
    python -m tests.simulation.decision --seed 17                     # the readable trace of one

No database is opened.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.coverage import cells, report
from tests.simulation.decision.checks import Violation
from tests.simulation.decision.run import simulate
from tests.simulation.portion import Portion, portions

PORTION = 1_000
SHOWN = 20


def run_range(seeds: range) -> Portion:
    """Every one of them, in this process."""
    result = Portion(len(seeds))
    for seed in seeds:
        try:
            result.cells |= simulate(seed).cells
        except Violation as error:
            result.violations.append((seed, str(error)))
            result.cells |= error.run.cells
    return result


def until_one(seeds: range) -> int:
    """Ends with 1 at the first seed that violates an invariant."""
    for seed in seeds:
        try:
            simulate(seed)
        except Violation as error:
            print(f"seed {seed}: {error}")
            return 1
    return 0


def show(seed: int) -> int:
    """The trace of one seed."""
    try:
        trace, problem = simulate(seed, tracing=True).trace, None
    except Violation as error:
        trace, problem = error.run.trace, str(error)
    print("\n".join(trace))
    print(f"seed {seed}: {problem or 'no violation'}")
    return 1 if problem else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:5000", help="first:last, the last excluded")
    parser.add_argument("--seed", type=int, help="show one")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--first", action="store_true", help="only say which seed violates an invariant first")
    parser.add_argument("--missing", action="store_true", help="list every cell that was not reached")
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        return show(asked.seed)
    first, last = map(int, asked.seeds.split(":"))
    if asked.first:
        return until_one(range(first, last))
    begun = time.perf_counter()
    result = Portion()
    for part in portions(run_range, range(first, last), PORTION, asked.jobs):
        result.add(part)
    took = time.perf_counter() - begun
    print(report(result.cells, cells(), everything=asked.missing))
    print(f"{result.seeds} seeds in {took:.1f} s: {result.seeds / took:.0f} seeds/s with {asked.jobs} process(es)")
    for seed, problem in result.violations[:SHOWN]:
        print(f"seed {seed}: {problem}\n    python -m tests.simulation.decision --seed {seed}")
    print(f"{len(result.violations)} violations")
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
