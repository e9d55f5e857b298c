"""Real kills: `python -m tests.chaos --runs A:B [--jobs N] [--record]`, or `--next N` from where the ledger ends.

Builds and installs the wheel, learns from runs that nothing befalls which model has to come home, then runs each number
in a process group of its own. Exit code 1 when a promise was broken; the homes of such runs are kept. Where there is no
box image to train on, `--replay-only` leaves the runs out that train for real; `--minutes` begins no run after that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.acceptance.installed import ROOT, build_wheel, install
from tests.chaos import ledger
from tests.chaos.schedule import STATES, draw, is_real

BATCH = 10  # runs a line of the ledger stands for
LIMIT_S = 1800.0  # of one run: patience is the run's own, this only ends what hangs for ever


def alone(number: str, bin_folder: Path, folder: Path, expected: str) -> dict[str, Any]:
    """One run in its own process group, of which nothing is left afterwards; its report."""
    command = [sys.executable, "-m", "tests.chaos.run", number, bin_folder, folder, expected]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        out, _ = child.communicate(timeout=LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    if not report["broken"]:
        shutil.rmtree(folder)
    return report


def told(report: dict[str, Any], folder: Path) -> str:
    """What a person sees of a run; all of it when a promise was broken."""
    deeds = ", ".join(f"{stroke['deed']} {stroke['state']}" for stroke in report["dealt"])
    kind = " (real training)" if report["real"] else ""
    lines = [
        f"{report['number']:>6}  {'BROKEN' if report['broken'] else 'kept'}  {report['seconds']:5.1f} s  {deeds}{kind}"
    ]
    if report["broken"]:
        lines += report["broken"]
        if report["number"].isdigit():
            lines += [f"  planned: {stroke.said()}" for stroke in draw(int(report["number"])).strokes]
        lines += [f"  event {line}" for line in report["tail"]]
        lines += [f"  home kept: {folder}", f"  again: python -m tests.chaos --runs {report['number']}"]
    return "\n".join(lines)


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Deeds that hit, by the state that they hit."""
    hit = Counter((stroke["deed"], stroke["state"]) for report in reports for stroke in report["dealt"])
    columns = [*STATES, *sorted({state for _, state in hit} - set(STATES))]
    rows = [["", *columns]]
    rows += [[deed, *(str(hit[deed, state] or ".") for state in columns)] for deed in sorted({deed for deed, _ in hit})]
    missed = sum(len(report["missed"]) for report in reports)
    return (
        "\n".join(" ".join(f"{cell:>14}" for cell in row) for row in rows) + f"\nplanned, but came too late: {missed}"
    )


def batches(runs: range) -> Iterator[range]:
    """`runs` in parts of a batch each, cut where the tens are."""
    start = runs.start
    while start < runs.stop:
        stop = min(runs.stop, (start // BATCH + 1) * BATCH)
        yield range(start, stop)
        start = stop


def chaos(asked: argparse.Namespace, runs: range, scratch: Path) -> bool:
    """All of `runs`, in order, as many as time allows; whether every promise was kept."""
    bin_folder = install(build_wheel(scratch / "wheel"), scratch / "venv")
    until = time.monotonic() + 60 * asked.minutes
    real = any(map(is_real, runs)) and not asked.replay_only
    if not real:
        print(f"no real training in {runs.start}:{runs.stop}")
    expected: dict[bool, str] = {}
    every: list[dict[str, Any]] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        quiet = {False: "quiet", True: "quiet-real"} if real else {False: "quiet"}
        for is_trained, report in zip(
            quiet, pool.map(lambda name: alone(name, bin_folder, scratch / name, ""), quiet.values()), strict=True
        ):
            expected[is_trained] = report["model_sha256"]
            assert not report["broken"], told(report, scratch / quiet[is_trained])

        def run(number: int) -> dict[str, Any] | None:
            if time.monotonic() > until:
                return None
            folder = scratch / f"run-{number}"
            report = alone(str(number), bin_folder, folder, expected[is_real(number)])
            print(told(report, folder), flush=True)
            return report

        left_out = {number for number in runs if asked.replay_only and is_real(number)}
        going = {number: pool.submit(run, number) for number in runs if number not in left_out}
        for batch in batches(runs):
            reports, stop = [], batch.start
            for stop in batch:  # begun in order, so what time cut off is the end
                if stop not in left_out and (report := going[stop].result()) is None:
                    break
                reports += [report] if stop not in left_out else []
            else:
                stop = batch.stop
            every += reports
            if asked.record and reports:
                without = sorted(left_out & set(range(batch.start, stop)))
                ledger.add(ledger.entry(range(batch.start, stop), reports, without, asked.commit or ledger.commit()))
            if stop < batch.stop:
                print(f"out of time: the next run is {stop}")
                break
    print(table(every))
    return not any(report["broken"] for report in every)


def _range(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--runs", type=_range, metavar="A:B", help="the runs from A up to, not with, B")
    which.add_argument("--next", type=int, metavar="N", help="N runs from where the ledger ends")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--record", action="store_true", help="add a line to the ledger for each ten runs")
    parser.add_argument("--replay-only", action="store_true", help="leave out the runs that train for real")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so long")
    parser.add_argument("--commit", help="what is run, where git cannot say it")
    given = parser.parse_args()
    runs = given.runs or range(ledger.next_run(), ledger.next_run() + given.next)
    scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
    begun = time.monotonic()
    kept = chaos(given, runs, scratch)
    print(f"{runs.start}:{runs.stop} in {time.monotonic() - begun:.0f} s: {'every promise kept' if kept else 'BROKEN'}")
    if kept:
        shutil.rmtree(scratch)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
