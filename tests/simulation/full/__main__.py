"""By hand: `python -m tests.simulation.full --seed 7`, `--seeds 0:500 --jobs 2`, `--aimed`, `--twins`, `--sweep` ..."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial

from tests.simulation.portion import Portion, portions, workers

from .cells import report
from .faults import FAULTS
from .seeds import aimed, simulate, twins
from .simulation import Result
from .sweep import Case, happy_path, objections, pairs, singles, step_pairs

PORTION = 10  # seeds a process takes at a time
Run = Callable[[int], Result]


def main() -> int:
    parser = argparse.ArgumentParser(description="The full tier of the simulator. Exit 1: an invariant was violated.")
    parser.add_argument("--seed", type=int, help="one seed, with its whole trace")
    parser.add_argument("--seeds", default="0:100", help="from:to")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--first", action="store_true", help="end at the first seed that violates an invariant")
    parser.add_argument("--aimed", action="store_true", help="every seed goes for one cell of the table of coverage")
    parser.add_argument("--twins", action="store_true", help="every seed has two jobs at once")
    parser.add_argument("--family", nargs="+", default=(), help="every sky holds a fault of these, as F1 F13")
    parser.add_argument("--sweep", action="store_true", help="every boundary of the short job, each in every way")
    parser.add_argument("--pairs", type=int, default=0, help="so many pairs of boundaries, drawn by --draw")
    parser.add_argument("--step-pairs", action="store_true", help="every pair of steps that were done and not heard of")
    parser.add_argument("--draw", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="of the sweep and the step pairs only each n-th case")
    asked = parser.parse_args()
    if asked.sweep or asked.step_pairs or asked.pairs:
        happy = happy_path()
        drawn = pairs(happy, asked.pairs, asked.draw) if asked.pairs else []
        each = [*(singles(happy) if asked.sweep else ()), *(step_pairs(happy) if asked.step_pairs else ())]
        return _sweep(happy, [*each[:: asked.every], *drawn], asked.jobs)
    run = aimed if asked.aimed else partial(twins if asked.twins else simulate, families=asked.family)
    if asked.seed is not None:
        return _one(run(asked.seed))
    first, last = (int(part) for part in asked.seeds.split(":"))
    if asked.first:
        return _until_one(range(first, last), run)
    return _many(range(first, last), asked.jobs, run, table=not asked.twins)


def _one(result: Result) -> int:
    print("\n".join(result.trace))
    for violation in result.violations:
        print(violation)
    print(f"{len(result.violations)} violations; {result.ledger}")
    return 1 if result.violations else 0


def _until_one(seeds: range, run: Run) -> int:
    for seed in seeds:
        if violations := run(seed).violations:
            print(f"seed {seed}: {violations[0]}")
            return 1
    return 0


def run_range(seeds: range, run: Run = simulate) -> Portion:
    """Every one of them, in this process. A seed that breaks the simulator itself is a finding too."""
    portion = Portion(len(seeds))
    for seed in seeds:
        try:
            found = run(seed)
        except Exception as error:  # noqa: BLE001 - said, and counted
            portion.violations.append((seed, f"the simulator ends with {type(error).__name__}: {error}"))
            continue
        portion.cells |= found.cells
        portion.violations += [(seed, str(violation)) for violation in found.violations[:1]]
    return portion


def _many(seeds: range, processes: int, run: Run, *, table: bool) -> int:
    """With the table of cells; of two jobs nobody says whose boundary it was."""
    began, whole = time.monotonic(), Portion()
    for portion in portions(partial(run_range, run=run), seeds, PORTION, processes):
        whole.add(portion)
        for seed, problem in portion.violations:
            print(f"seed {seed}: {problem}", flush=True)
    took = time.monotonic() - began
    if table:
        print(report(whole.cells))
        silent = [fault for fault in FAULTS if not any(cell.fault == fault for cell in whole.cells)]
        print(f"faults that never struck: {silent}")
    print(f"{len(seeds)} seeds, {len(whole.violations)} bad, {took:.1f} s, {len(seeds) / took:.2f} seeds/s")
    return 1 if whole.violations else 0


def _sweep(happy: Result, cases: list[Case], processes: int) -> int:
    print(f"{len(happy.boundaries)} boundaries, {len(cases)} cases; {happy.ledger}")
    began, bad = time.monotonic(), 0
    with workers(processes) as pool:
        for case, wrong in zip(cases, pool.map(partial(objections, happy=happy), cases, chunksize=4), strict=True):
            if wrong:
                bad += 1
                number = case.endings[0][0]
                print(f"{case} ({' '.join(happy.boundaries[number])}): {wrong[0]}", flush=True)
    print(f"{len(cases)} cases, {bad} bad, {time.monotonic() - began:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
