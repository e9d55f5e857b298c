"""`python -m tests.fuzz --seconds 60 [--only NAME ...]`: each target in a process of its own, under atheris.

Begins with tests/fuzz/corpus/NAME; what reaches new code is kept in .cache/fuzz/NAME. An input that breaks a reader is
written to tests/fuzz/corpus/NAME, where the unit tests find it for ever. Ends with 1 when there was one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
LONGEST = 16 << 10  # bytes of one input


def run_one(name: str, *arguments: str) -> None:
    """This process: fuzz until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["daemon", "remote_payload"]):
        from tests.fuzz import targets

    atheris.Setup([sys.argv[0], *arguments], lambda content: targets.feed(name, content))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        run_one(*given.one)
        return 0
    from tests.fuzz.targets import TARGETS

    broken = False
    for name in given.only or TARGETS:
        seeds, found = CORPUS / name, ROOT / ".cache" / "fuzz" / name
        found.mkdir(parents=True, exist_ok=True)
        seeds.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, f"-max_total_time={given.seconds}"]
        command += [f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={seeds}/"]
        done = subprocess.run([*command, str(found), str(seeds)], cwd=ROOT, capture_output=True, text=True, check=False)
        executions = re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)
        print(f"{name:<12} {executions[-1] if executions else 0:>10} executions  exit {done.returncode}", flush=True)
        if done.returncode:
            broken = True
            print(done.stdout[-2000:], done.stderr[-3000:], file=sys.stderr)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
