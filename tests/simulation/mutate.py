"""Plant each bug of mutants.py in a copy of the source, run its simulator there, and say whether it was caught.

    python -m tests.simulation.mutate [--seeds 500] [--tier full] [--jobs 8] [NAME ...]

The copy lies in a temporary folder, so that the working tree never holds a planted bug. A seed has caught it when a
second copy, without the bug, passes that seed; in the full tier every seed has a fault of the bug's families. Ends with
1 when one survives.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.simulation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("daemon", "remote_payload", "migrations", "tests")
SEEDS = 500
CAUGHT, CLEAN = 1, 0  # exit codes of a simulator
SEED = re.compile(r"seed \d+: ")


def plant(mutant: Mutant, tree: Path) -> None:
    """Raises ValueError when an edit's place is not there, or is there twice: the table has to follow the code."""
    for edit in mutant.edits:
        path = tree / edit.file
        text = path.read_text(encoding="utf-8")
        if (found := text.count(edit.old)) != 1:
            raise ValueError(f"{mutant.name}: {edit.file} has {found} places with {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def copy(tree: Path) -> None:
    tree.mkdir(exist_ok=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "recordings"))
    shutil.copy(ROOT / "pyproject.toml", tree)


def hunt(mutant: Mutant, seeds: int) -> str | None:
    """What the simulator said first about the planted bug; None when it survived. Raises RuntimeError: it broke off."""
    with tempfile.TemporaryDirectory() as folder:
        clean, planted = Path(folder, "clean"), Path(folder, "planted")
        copy(clean)
        copy(planted)
        plant(mutant, planted)
        first = 0
        while (said := accuse(planted, mutant, first, seeds)) is not None:
            seed = int(said.split()[1].rstrip(":"))
            if accuse(clean, mutant, seed, seed + 1) is None:
                return said
            first = seed + 1
    return None


def accuse(tree: Path, mutant: Mutant, first: int, last: int) -> str | None:
    """The line about the first of these seeds that violates an invariant of the code in `tree`."""
    tier, families = mutant.tier, mutant.families.split()
    aimed = ["--family", *families] if tier == "full" else []  # the decision tier's seeds go through all faults
    done = subprocess.run(
        [sys.executable, "-m", f"tests.simulation.{tier}", "--seeds", f"{first}:{last}", "--first", *aimed],
        cwd=tree, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == CLEAN:
        return None
    lines = [line for line in done.stdout.splitlines() if SEED.match(line)]
    if done.returncode != CAUGHT or not lines:
        raise RuntimeError(f"the {tier} tier ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return lines[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--tier", choices=("decision", "full"), help="only those that this one has to catch")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time")
    asked = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if (not asked.names or m.name in asked.names) and asked.tier in (None, m.tier)]
    with ThreadPoolExecutor(asked.jobs) as pool:  # each hunt waits for a process of its own
        survived = sum(not caught for caught in pool.map(partial(_told, seeds=asked.seeds), chosen))
    print(f"{survived} of {len(chosen)} survived")
    return 1 if survived else 0


def _told(mutant: Mutant, seeds: int) -> bool:
    """Whether it was caught, with a line that says by which seed and how soon."""
    begun = time.monotonic()
    try:
        caught = hunt(mutant, seeds)
    except RuntimeError as error:
        caught = None
        print(error)
    took = f"{time.monotonic() - begun:6.1f} s"
    print(f"{mutant.tier:8} {mutant.families:8} {mutant.name:36} {took}  {caught or 'SURVIVED'}", flush=True)
    return caught is not None


if __name__ == "__main__":
    sys.exit(main())
